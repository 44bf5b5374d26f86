"""Stored positions: the last offset of each topic's partition that the event log holds.

Turns offsets into rows that never go back, unless `correct_position` is called. The feedback consumer writes them;
outboxes read which events they may delete. A partition is named '<topic_id>/<partition>'.
"""

from collections.abc import Mapping

import sqlalchemy as sa

from serving.registry import tables as t
from serving.registry.database import Database


class Positions:
    """The stored positions of one model."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_positions(self, positions: Mapping[str, int]) -> None:
        """Record the last stored offset by '<topic_id>/<partition>'; a lower offset than the recorded one is ignored."""
        with self._database.write() as connection:
            known = self._read(connection)
            for topic_partition, offset in positions.items():
                if offset > known.get(topic_partition, -1):
                    self._replace(connection, topic_partition, offset)

    def correct_position(self, topic_partition: str, offset: int) -> int:
        """Set a position to what the event log holds (-1: nothing), even if lower; return the one before, -1 for none."""
        with self._database.write() as connection:
            known = self._read(connection).get(topic_partition, -1)
            if offset < 0 <= known:
                mine = self._database.mine(t.positions) & (t.positions.c.partition == topic_partition)
                connection.execute(t.positions.delete().where(mine))
            elif offset != known:
                self._replace(connection, topic_partition, offset)
            return known

    def positions(self) -> dict[str, int]:
        """Return the last offset stored in the event log, by '<topic_id>/<partition>'."""
        with self._database.read() as connection:
            return self._read(connection)

    def _read(self, connection: sa.Connection) -> dict[str, int]:
        query = sa.select(t.positions.c.partition, t.positions.c.last_offset)
        rows = connection.execute(query.where(self._database.mine(t.positions)))
        return {row.partition: row.last_offset for row in rows}

    def _replace(self, connection: sa.Connection, topic_partition: str, offset: int) -> None:
        key = {"model_name": self._database.model_name, "partition": topic_partition}
        self._database.upsert(connection, t.positions, {**key, "last_offset": offset})
