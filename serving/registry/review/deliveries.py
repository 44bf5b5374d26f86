"""Deliveries: webhooks that are to be sent, and how often they were tried.

Turns events into one row for each receiver, however often they are noticed, and answers into the next try. The console's
notifier adds and sends them; nothing is lost when it restarts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from serving.registry import tables as t
from serving.registry.database import Database, iso

DELAYS_S = (5, 30, 120, 600, 3600, 6 * 3600)  # before the second try, the third, and so on; then the delivery fails
KEEP = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event for one receiver. `body` is the JSON that is signed and sent."""

    delivery_id: str
    url: str
    event: str
    body: str
    attempts: int = 0


class Deliveries:
    """The webhooks of one model."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, deliveries: Iterable[Delivery]) -> int:
        """Add the deliveries whose id is new; return their number. Delivered ones of last month are deleted."""
        added = 0
        with self._database.write() as connection:
            past = t.deliveries.c.created_at < iso(self._database.clock() - KEEP)
            connection.execute(t.deliveries.delete().where(self._mine, past, t.deliveries.c.state != "waiting"))
            for one in deliveries:
                known = sa.select(t.deliveries.c.state).where(self._mine, t.deliveries.c.delivery_id == one.delivery_id)
                if connection.execute(known).first() is None:
                    connection.execute(t.deliveries.insert().values(self._row(one)))
                    added += 1
        return added

    def due(self, limit: int = 20) -> list[Delivery]:
        """Return deliveries whose time has come, the oldest first."""
        due = (t.deliveries.c.state == "waiting") & (t.deliveries.c.next_at <= self._database.now())
        query = sa.select(t.deliveries).where(self._mine, due).order_by(t.deliveries.c.created_at).limit(limit)
        with self._database.read() as connection:
            return [
                Delivery(
                    delivery_id=row.delivery_id, url=row.url, event=row.event, body=row.body, attempts=row.attempts
                )
                for row in connection.execute(query)
            ]

    def delivered(self, delivery: Delivery) -> None:
        """Record that a receiver confirmed a delivery."""
        self._set(delivery, state="delivered", attempts=delivery.attempts + 1, error=None)

    def failed(self, delivery: Delivery, error: str) -> None:
        """Record a failed try: the next one comes later, or never after the last of DELAYS_S."""
        delay = DELAYS_S[delivery.attempts] if delivery.attempts < len(DELAYS_S) else None
        next_at = iso(self._database.clock() + timedelta(seconds=delay or 0))
        state = "waiting" if delay else "failed"
        self._set(delivery, state=state, attempts=delivery.attempts + 1, error=error[:500], next_at=next_at)

    def since(self) -> datetime:
        """Return the time from which on events are sent: that of the first call, so that old events stay silent."""
        key = f"since:{self._database.model_name}"
        with self._database.write() as connection:
            query = sa.select(t.deliveries.c.created_at).where(self._mine, t.deliveries.c.delivery_id == key)
            stored = connection.execute(query).scalar()
            if stored is None:
                row = self._row(Delivery(delivery_id=key, url="", event="since", body=""))
                connection.execute(t.deliveries.insert().values({**row, "state": "marker"}))
                stored = row["created_at"]
            return datetime.fromisoformat(str(stored))

    def counts(self) -> dict[str, int]:
        """Return the number of deliveries by state: waiting, delivered, failed."""
        query = sa.select(t.deliveries.c.state, sa.func.count()).where(self._mine, t.deliveries.c.state != "marker")
        with self._database.read() as connection:
            return {state: int(n) for state, n in connection.execute(query.group_by(t.deliveries.c.state))}

    def _set(self, delivery: Delivery, **fields: object) -> None:
        with self._database.write() as connection:
            named = self._mine & (t.deliveries.c.delivery_id == delivery.delivery_id)
            connection.execute(t.deliveries.update().where(named).values(**fields))

    def _row(self, one: Delivery) -> dict[str, object]:
        now = self._database.now()
        return {
            "model_name": self._database.model_name,
            "delivery_id": one.delivery_id,
            "url": one.url,
            "event": one.event,
            "body": one.body,
            "state": "waiting",
            "attempts": 0,
            "next_at": now,
            "error": None,
            "created_at": now,
        }

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        return self._database.mine(t.deliveries)
