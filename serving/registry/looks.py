"""The ledger of looks: every judgement of a candidate on the reference set, and the alpha that it spent.

Turns a champion, a candidate and the keys of the judging rows into a numbered look. pipelines/round_judgement.py opens a look
before anything is compared and closes it with the p-value, so a round that dies in between has spent its alpha, once. Looks count
against the champion version, whoever served in between. How much a look may spend is decided in pipelines/gates.
"""

from collections.abc import Callable, Sequence

import sqlalchemy as sa

from schemas.records import Look
from serving.registry import tables as t
from serving.registry.database import Database, values

ROWS_PER_INSERT = 300  # below every database's limit of parameters
Spending = Callable[[int, int | None], float]


class Looks:
    """The looks at one model's champions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open_look(
        self,
        round_id: str,
        champion: str,
        candidate: str,
        row_keys: Sequence[str],
        rows_sha256: str,
        spending: Spending,
        *,
        least_fresh: int,
    ) -> Look:
        """Enter the round's look at a champion and return it; a round that has one already gets the same again.

        Args:
            round_id: the round.
            champion: version that the candidate is compared with.
            candidate: version that is judged.
            row_keys: a key of each judging row, the same in every round.
            rows_sha256: fingerprint of the judging rows with their labels.
            spending: turns the look's number at this champion, and its number among those with fresh rows (None without),
                into its alpha.
            least_fresh: so many rows on which the champion was never judged make the look one with fresh rows.

        """
        with self._database.write() as connection:
            known = self._find(connection, round_id, champion)
            if known is not None:
                return known
            keys = dict.fromkeys(row_keys)
            judged = self._judged(connection, champion)
            fresh = [key for key in keys if key not in judged]
            before = self._of(connection, champion)
            brings = len(fresh) >= min(least_fresh, len(keys))
            series = 1 + sum(look.fresh_rows > 0 for look in before) if brings else None
            look = Look(
                sequence=self._database.next_number(connection, t.looks, "sequence"),
                round_id=round_id,
                champion=champion,
                candidate=candidate,
                number=len(before) + 1,
                rows=len(row_keys),
                fresh_rows=len(fresh) if brings else 0,
                rows_sha256=rows_sha256,
                alpha=spending(len(before) + 1, series),
                at=self._database.clock(),
            )
            row = {**look.model_dump(), "at": self._database.now(), "model_name": self._database.model_name}
            connection.execute(t.looks.insert().values(row))
            # Few fresh rows wait: they are fresh until a look brings enough of them.
            self._enter_rows(connection, champion, fresh if brings else [])
            return look

    def close_look(self, sequence: int, *, p: float | None, verdict: str) -> None:
        """Write the p-value and the round's verdict of the look with this number into the ledger."""
        with self._database.write() as connection:
            mine = self._database.mine(t.looks) & (t.looks.c.sequence == sequence)
            connection.execute(t.looks.update().where(mine).values(p=p, verdict=verdict))

    def looks(self, champion: str | None = None) -> list[Look]:
        """Return the looks at one champion, or at all, oldest first; none from a registry that is not migrated yet."""
        with self._database.read() as connection:
            return self._of(connection, champion) if sa.inspect(connection).has_table(t.looks.name) else []

    def _of(self, connection: sa.Connection, champion: str | None) -> list[Look]:
        query = sa.select(t.looks).where(self._database.mine(t.looks)).order_by(t.looks.c.sequence)
        if champion is not None:
            query = query.where(t.looks.c.champion == champion)
        return [Look.model_validate(values(row)) for row in connection.execute(query)]

    def _find(self, connection: sa.Connection, round_id: str, champion: str) -> Look | None:
        named = (t.looks.c.round_id == round_id) & (t.looks.c.champion == champion)
        query = sa.select(t.looks).where(self._database.mine(t.looks), named)
        row = connection.execute(query).first()
        return Look.model_validate(values(row)) if row else None

    def _judged(self, connection: sa.Connection, champion: str) -> set[str]:
        mine = self._database.mine(t.looked_rows) & (t.looked_rows.c.champion == champion)
        return set(connection.execute(sa.select(t.looked_rows.c.row_key).where(mine)).scalars())

    def _enter_rows(self, connection: sa.Connection, champion: str, keys: Sequence[str]) -> None:
        name = self._database.model_name
        for start in range(0, len(keys), ROWS_PER_INSERT):
            rows = [
                {"model_name": name, "champion": champion, "row_key": key} for key in keys[start:][:ROWS_PER_INSERT]
            ]
            connection.execute(t.looked_rows.insert(), rows)
