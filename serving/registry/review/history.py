"""History: pages of rounds, versions and the audit log, for people who read them.

Turns filters and a position into at most `limit` rows, newest first, so that a store of ten thousand rounds costs as much
as a page of it. The console reads it. Rounds and audit log themselves are written by their nouns.
"""

import json
from collections.abc import Collection, Iterable

import orjson
import sqlalchemy as sa

from schemas.records import AuditRow, Champion, RoundRecord, VersionRecord
from serving.registry import tables as t
from serving.registry.database import Database, values


class History:
    """Paged reads of one model's registry. Positions are sequence numbers; a page holds those below `before`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rounds_page(
        self, *, states: Collection[str] = (), before: int | None = None, limit: int = 50
    ) -> list[tuple[int, RoundRecord]]:
        """Return rounds with their position, newest first. No states: all."""
        query = sa.select(t.rounds.c.sequence, t.rounds.c.record).where(self._database.mine(t.rounds))
        if states:
            query = query.where(t.rounds.c.state.in_(sorted(states)))
        if before is not None:
            query = query.where(t.rounds.c.sequence < before)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(t.rounds.c.sequence.desc()).limit(limit)).all()
        return [(row.sequence, RoundRecord.model_validate_json(row.record)) for row in rows]

    def round_counts(self) -> dict[str, int]:
        """Return the number of rounds by state."""
        query = sa.select(t.rounds.c.state, sa.func.count().label("n")).where(self._database.mine(t.rounds))
        with self._database.read() as connection:
            return {row.state: int(row.n) for row in connection.execute(query.group_by(t.rounds.c.state))}

    def round_ids(self, prefix: str, limit: int = 2) -> list[str]:
        """Return up to `limit` ids that begin with `prefix`; `%` and `_` are literal."""
        query = sa.select(t.rounds.c.round_id).where(
            self._database.mine(t.rounds), t.rounds.c.round_id.startswith(prefix, autoescape=True)
        )
        with self._database.read() as connection:
            return list(connection.execute(query.limit(limit)).scalars())

    def evaluations(self, round_ids: Iterable[str]) -> dict[str, dict[str, object]]:
        """Return round id -> its record as plain JSON values; unknown ids are left out.

        The records are not validated: a page that draws 200 rounds needs a few numbers of each.
        """
        wanted = sorted(set(round_ids))
        read: dict[str, dict[str, object]] = {}
        with self._database.read() as connection:
            for start in range(0, len(wanted), 500):
                some = t.rounds.c.round_id.in_(wanted[start : start + 500])
                query = sa.select(t.rounds.c.round_id, t.rounds.c.record).where(self._database.mine(t.rounds), some)
                read |= {row.round_id: orjson.loads(row.record) for row in connection.execute(query)}
        return read

    def quarantined(self, limit: int) -> list[tuple[str, str, list[str]]]:
        """Return id, time and quarantined people of those of the newest `limit` rounds that quarantined somebody."""
        query = sa.select(t.rounds.c.record).where(self._database.mine(t.rounds)).order_by(t.rounds.c.sequence.desc())
        with self._database.read() as connection:
            records = [orjson.loads(text) for text in connection.execute(query.limit(limit)).scalars()]
        named = [
            (r["round_id"], r["created_at"], (r.get("dataset") or {}).get("quarantined_people", [])) for r in records
        ]
        return [one for one in named if one[2]]

    def recent_versions(self, limit: int) -> list[VersionRecord]:
        """Return the newest versions."""
        query = sa.select(t.versions).where(self._database.mine(t.versions)).order_by(t.versions.c.sequence.desc())
        with self._database.read() as connection:
            return [VersionRecord.model_validate(values(row)) for row in connection.execute(query.limit(limit))]

    def recent_promotions(self, limit: int) -> list[Champion]:
        """Return the newest champions."""
        mine = self._database.mine(t.promotions)
        query = sa.select(t.promotions).where(mine).order_by(t.promotions.c.generation.desc())
        with self._database.read() as connection:
            return [Champion.model_validate(values(row)) for row in connection.execute(query.limit(limit))]

    def audit_page(
        self,
        *,
        actor: str = "",
        action: str = "",
        before: int | None = None,
        limit: int = 100,
    ) -> list[AuditRow]:
        """Return rows of the audit log, newest first. Empty filters: all."""
        query = sa.select(t.audit).where(self._database.mine(t.audit))
        if actor:
            query = query.where(t.audit.c.actor == actor)
        if action:
            query = query.where(t.audit.c.action == action)
        if before is not None:
            query = query.where(t.audit.c.sequence < before)
        with self._database.read() as connection:
            rows = [values(row) for row in connection.execute(query.order_by(t.audit.c.sequence.desc()).limit(limit))]
        return [AuditRow.model_validate(row | {"detail": json.loads(row["detail"])}) for row in rows]

    def audit_about(self, subject: str) -> list[AuditRow]:
        """Return the rows whose detail names `subject`, such as a round's id, newest first."""
        named = t.audit.c.detail.contains(f'"{subject}"', autoescape=True)
        query = sa.select(t.audit).where(self._database.mine(t.audit), named).order_by(t.audit.c.sequence.desc())
        with self._database.read() as connection:
            rows = [values(row) for row in connection.execute(query.limit(100))]
        return [AuditRow.model_validate(row | {"detail": json.loads(row["detail"])}) for row in rows]

    def audit_details(self, actions: Collection[str]) -> list[dict[str, object]]:
        """Return the details of all rows with one of the actions, oldest first."""
        query = sa.select(t.audit.c.detail).where(self._database.mine(t.audit), t.audit.c.action.in_(sorted(actions)))
        with self._database.read() as connection:
            return [json.loads(text) for text in connection.execute(query.order_by(t.audit.c.sequence)).scalars()]

    def audit_names(self) -> tuple[list[str], list[str]]:
        """Return the distinct actors and actions of the audit log, each sorted."""
        with self._database.read() as connection:
            actors, actions = (
                sorted(connection.execute(sa.select(column).where(self._database.mine(t.audit)).distinct()).scalars())
                for column in (t.audit.c.actor, t.audit.c.action)
            )
        return actors, actions
