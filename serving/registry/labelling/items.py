"""The queue's items as rounds and datasets see them: added, decided, waiting, erased.

Turns new texts into items and decided items into labels with their answers' authors. Rounds and dataset builds use it; reviewers
use queue.py, which never shows an author.
"""

from collections.abc import Iterable

import sqlalchemy as sa

from schemas.queue import DecidedItem, ItemState, NewItem
from serving.registry import tables as t
from serving.registry.database import Database, values
from serving.registry.labelling.rows import OFFERED, QueueRows, as_decided, new_row


class QueueItems:
    """The items of one model's queue."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows = QueueRows(database)

    def add(self, items: Iterable[NewItem]) -> int:
        """Add items whose text the round, or the audit sample, does not have yet; return their number."""
        added = 0
        with self._database.write() as connection:
            for item in items:
                same = (t.queue_items.c.kind == item.kind) & (t.queue_items.c.round_id == (item.round_id or ""))
                known = self._rows.select(sa.func.count()).where(same, t.queue_items.c.key == item.key)
                if connection.execute(known).scalar():
                    continue
                row = new_row(item, self._database.model_name, self._database.now())
                connection.execute(t.queue_items.insert().values(row))
                added += 1
        return added

    def decided(self, round_id: str | None = None) -> list[DecidedItem]:
        """Return the labelled items of a round, or of the audit sample, in the order in which they were decided."""
        labelled = (t.queue_items.c.round_id == (round_id or "")) & (t.queue_items.c.state == ItemState.LABELLED.value)
        query = self._rows.select().where(labelled).order_by(t.queue_items.c.decided_at, t.queue_items.c.draw)
        with self._database.read() as connection:
            return [as_decided(values(row)) for row in connection.execute(query)]

    def waiting(self) -> frozenset[str]:
        """Return the audit texts that have no label yet and have not expired: feedback on them does not train."""
        waits = t.queue_items.c.state.in_(OFFERED)
        query = self._rows.select(t.queue_items.c.text).where(
            t.queue_items.c.kind == "audit", waits, self._rows.unexpired()
        )
        with self._database.read() as connection:
            return frozenset(connection.execute(query).scalars())

    def erase(self, texts: Iterable[str]) -> int:
        """Delete the items of these texts with their votes; return the number of items."""
        erased = 0
        with self._database.write() as connection:
            for text in dict.fromkeys(texts):
                ids = list(
                    connection.execute(
                        self._rows.select(t.queue_items.c.item_id).where(t.queue_items.c.text == text)
                    ).scalars()
                )
                for table in (t.queue_votes, t.queue_items):
                    mine = self._database.mine(table) & table.c.item_id.in_(ids)
                    connection.execute(table.delete().where(mine))
                erased += len(ids)
        return erased
