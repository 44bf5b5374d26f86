"""Serving workers' heartbeats: which workers are alive, and the version that each serves.

Turns a worker's state into one row per worker. Serving writes it; the scheduler, `ratchet status` and `doctor` read it.
"""

from datetime import timedelta

import sqlalchemy as sa

from schemas.records import WorkerHeartbeat
from serving.registry import tables as t
from serving.registry.database import Database, iso, values

FORGET_WORKERS_AFTER = timedelta(days=1)


class Workers:
    """The heartbeats of one model's workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def heartbeat(
        self, worker: str, host: str, *, model_version: str | None, generation: int, error: str | None
    ) -> None:
        """Record which version a worker serves, and delete heartbeats that are more than a day from now."""
        now = self._database.clock()
        row: dict[str, object] = {
            "model_name": self._database.model_name,
            "host": host,
            "worker": worker,
            "model_version": model_version,
            "generation": generation,
            "error": error,
            "seen_at": iso(now),
        }
        with self._database.write() as connection:
            silent = t.heartbeats.c.seen_at < iso(now - FORGET_WORKERS_AFTER)
            ahead = t.heartbeats.c.seen_at > iso(now + FORGET_WORKERS_AFTER)  # the clock has been set back since
            connection.execute(t.heartbeats.delete().where(self._database.mine(t.heartbeats) & (silent | ahead)))
            self._database.upsert(connection, t.heartbeats, row)

    def workers(self, within_s: float = 30) -> list[WorkerHeartbeat]:
        """Return the workers with a heartbeat within `within_s` seconds, by host and worker.

        A heartbeat further ahead dates from before the clock was set back: a living worker sends another in seconds.
        """
        now, within = self._database.clock(), timedelta(seconds=within_s)
        near = t.heartbeats.c.seen_at.between(iso(now - within), iso(now + within))
        query = sa.select(t.heartbeats).where(self._database.mine(t.heartbeats), near)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(t.heartbeats.c.host, t.heartbeats.c.worker))
            return [WorkerHeartbeat.model_validate(values(row)) for row in rows]
