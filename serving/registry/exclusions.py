"""Exclusions: erased users, and predictions, feedback and file rows that a person excluded.

Turns names into rows of the registry, and the rows into one value that decides whether an event may be stored. The command
line writes exclusions. The feedback consumer, the replay of dead letters and dataset builds read them, so that excluded
data cannot return. Nothing is deleted here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from schemas.events import FeedbackReceived, PredictionMade
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.database import Database

Kind = Literal["user", "prediction", "feedback", "row"]


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """All exclusions at one moment.

    `users` maps a pseudonym to the time up to which the user's events are excluded; later events are accepted. `feedback`
    holds '<prediction_id>/<feedback_id>', `rows` the keys of texts (pipelines/dataset/exclusions.py).
    """

    users: Mapping[str, datetime] = field(default_factory=dict)
    predictions: frozenset[str] = frozenset()
    feedback: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()

    def covers(self, event: PredictionMade | FeedbackReceived) -> bool:
        """Return whether an event is excluded; give it in the form in which it would be stored."""
        data = event.data
        until = self.users.get(data.user) if data.user else None
        if (until is not None and event.time <= until) or data.prediction_id in self.predictions:
            return True
        return isinstance(event, FeedbackReceived) and feedback_key(event) in self.feedback


def feedback_key(event: FeedbackReceived) -> str:
    """Return a feedback's key among the exclusions."""
    return f"{event.data.prediction_id}/{event.data.feedback_id}"


class Exclusions:
    """The exclusions of one model."""

    def __init__(self, database: Database, audit_log: AuditLog) -> None:
        self._database = database
        self._audit_log = audit_log

    def excluded(self) -> Excluded:
        """Return all exclusions."""
        query = sa.select(t.exclusions).where(self._database.mine(t.exclusions))
        with self._database.read() as connection:
            rows = list(connection.execute(query))
        named = {
            kind: frozenset(row.subject for row in rows if row.kind == kind)
            for kind in ("prediction", "feedback", "row")
        }
        return Excluded(
            users={row.subject: datetime.fromisoformat(row.excluded_at) for row in rows if row.kind == "user"},
            predictions=named["prediction"],
            feedback=named["feedback"],
            rows=named["row"],
        )

    def exclude(
        self, kind: Kind, subjects: Iterable[str], *, actor: str, action: str, detail: Mapping[str, object]
    ) -> None:
        """Exclude `subjects` from now on, in one transaction with a row of the audit log."""
        with self._database.write() as connection:
            for subject in dict.fromkeys(subjects):
                key = {"model_name": self._database.model_name, "kind": kind, "subject": subject}
                self._database.upsert(connection, t.exclusions, {**key, "excluded_at": self._database.now()})
            self._audit_log.append(connection, actor, action, detail)

    def include(
        self, kind: Kind, subjects: Iterable[str], *, actor: str, action: str, detail: Mapping[str, object]
    ) -> None:
        """Exclude `subjects` no longer, in one transaction with a row of the audit log."""
        table = t.exclusions
        with self._database.write() as connection:
            for subject in dict.fromkeys(subjects):
                mine = sa.and_(self._database.mine(table), table.c.kind == kind, table.c.subject == subject)
                connection.execute(table.delete().where(mine))
            self._audit_log.append(connection, actor, action, detail)
