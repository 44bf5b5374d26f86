"""The split ledger: the side (train, validation, test) on which an example's cluster stays for good.

Turns proposed sides into the sides in force. An earlier release recorded the side "audit" for texts that were marked and never
labelled; such a text has no side yet. Dataset builds use it; how a cluster or its side is chosen is decided there.
"""

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from serving.registry import tables as t
from serving.registry.database import Database

MARKED = "audit"
KEYS_PER_QUERY = 500  # below every database's limit of parameters


class SplitLedger:
    """The sides of one model's clusters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sides(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the sides in force of those `keys` that have one."""
        with self._database.read() as connection:
            return self._read(connection, keys)

    def record_sides(self, sides: Mapping[str, str]) -> dict[str, str]:
        """Write key -> side where none is recorded yet, and return the sides in force: the first writer wins."""
        with self._database.write() as connection:
            known = self._read(connection, sides)
            self._release(connection, sides.keys() - known.keys())
            rows = [
                {"model_name": self._database.model_name, "cluster": key, "side": side}
                for key, side in sides.items()
                if key not in known
            ]
            if rows:
                connection.execute(t.sides.insert(), rows)
            return {key: known.get(key, side) for key, side in sides.items()}

    def _read(self, connection: sa.Connection, keys: Iterable[str]) -> dict[str, str]:
        wanted, sides = list(keys), dict[str, str]()
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            chunk = t.sides.c.cluster.in_(wanted[start : start + KEYS_PER_QUERY])
            mine = self._database.mine(t.sides) & (t.sides.c.side != MARKED)
            query = sa.select(t.sides.c.cluster, t.sides.c.side).where(mine, chunk)
            sides |= {row.cluster: row.side for row in connection.execute(query)}
        return sides

    def _release(self, connection: sa.Connection, keys: Iterable[str]) -> None:
        """Delete the sides that stand for a mark alone."""
        wanted = list(keys)
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            chunk = t.sides.c.cluster.in_(wanted[start : start + KEYS_PER_QUERY])
            marked = self._database.mine(t.sides) & (t.sides.c.side == MARKED)
            connection.execute(t.sides.delete().where(marked, chunk))
