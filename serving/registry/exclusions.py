"""What is left out for good: people who asked to be erased, and predictions, feedback and file rows that somebody took out.

Turns names into rows of the registry, and those into one value that says whether an event may be stored. The command line
writes it; the feedback consumer, the replay of dead letters and dataset builds read it, so that nothing comes back. It
deliberately deletes nothing itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from schemas.events import FeedbackReceived, PredictionMade
from serving.registry import tables as t
from serving.registry.audit import AuditLog

Kind = Literal["user", "prediction", "feedback", "row"]


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """All exclusions of one moment.

    `users` are pseudonyms with the time up to which what they said is gone: they may come back. `feedback` holds
    '<prediction_id>/<feedback_id>', `rows` the keys of texts (pipelines/dataset/exclusions.py).
    """

    users: Mapping[str, datetime] = field(default_factory=dict)
    predictions: frozenset[str] = frozenset()
    feedback: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()

    def covers(self, event: PredictionMade | FeedbackReceived) -> bool:
        """Whether an event, in the form in which it is stored, must not be stored."""
        data = event.data
        until = self.users.get(data.user) if data.user else None
        if (until is not None and event.time <= until) or data.prediction_id in self.predictions:
            return True
        return isinstance(event, FeedbackReceived) and feedback_key(event) in self.feedback


def feedback_key(event: FeedbackReceived) -> str:
    """Return what names a feedback among the exclusions."""
    return f"{event.data.prediction_id}/{event.data.feedback_id}"


class Exclusions(AuditLog):
    """The exclusions of one model."""

    def excluded(self) -> Excluded:
        """Everything that is left out."""
        query = sa.select(t.exclusions).where(self._mine(t.exclusions))
        with self._read() as connection:
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
        """Leave these out from now on, in one transaction with a row of the audit log."""
        with self._write() as connection:
            for subject in dict.fromkeys(subjects):
                key = {"model_name": self.model_name, "kind": kind, "subject": subject}
                self._upsert(connection, t.exclusions, {**key, "excluded_at": self._now()})
            self._audit(connection, actor, action, detail)

    def include(
        self, kind: Kind, subjects: Iterable[str], *, actor: str, action: str, detail: Mapping[str, object]
    ) -> None:
        """Leave these out no longer, in one transaction with a row of the audit log."""
        table = t.exclusions
        with self._write() as connection:
            for subject in dict.fromkeys(subjects):
                mine = sa.and_(self._mine(table), table.c.kind == kind, table.c.subject == subject)
                connection.execute(table.delete().where(mine))
            self._audit(connection, actor, action, detail)
