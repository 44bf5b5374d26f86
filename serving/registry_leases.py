"""Leases, worker heartbeats and stored positions: who may act, who is alive, how far the event log is.

Turns a holder's claim into a fencing token, and what processes say of themselves into what others may ask. The scheduler
takes leases, serving beats, the consumer records positions. It deliberately does not know what a lease protects.
"""

from collections.abc import Mapping
from datetime import timedelta

import sqlalchemy as sa

from schemas.artifacts import WorkerHeartbeat
from serving import registry_tables as t
from serving.registry_database import Database, iso, values

SCHEDULER = "scheduler"
FORGET_WORKERS_AFTER = timedelta(days=1)


class StaleLease(RuntimeError):
    """The caller's fencing token is not the lease's any more: somebody else took over."""


class Leases(Database):
    """Leases, heartbeats and positions of one model."""

    def acquire_lease(self, name: str, holder: str, ttl_s: float) -> int | None:
        """The fencing token of a lease, taken or renewed for `ttl_s` seconds; None while another holds it.

        Renewing keeps the token; every taking over, also after a release, makes it grow (Kleppmann 2016, "How to do
        distributed locking"). Expiry is judged by the registry's clock, safety by the token alone.
        """
        with self._write() as connection:
            found = connection.execute(sa.select(t.leases).where(self._lease(name))).first()
            if found and found.holder not in (None, holder) and found.expires_at > self._now():
                return None
            renewed = found is not None and found.holder == holder
            token: int = (found.token if found else 0) + (0 if renewed else 1)
            expires = iso(self._clock() + timedelta(seconds=ttl_s))
            row = {"model_name": self.model_name, "name": name, "holder": holder, "token": token, "expires_at": expires}
            self._upsert(connection, t.leases, row)
            return token

    def release_lease(self, name: str, holder: str) -> None:
        """Give a lease back, if `holder` has it. Its token stays valid until somebody takes the lease."""
        with self._write() as connection:
            held = self._lease(name) & (t.leases.c.holder == holder)
            connection.execute(t.leases.update().where(held).values(holder=None))

    def heartbeat(
        self, worker: str, host: str, *, model_version: str | None, generation: int, error: str | None
    ) -> None:
        """Note what a serving worker serves, and forget workers that have been silent for a day."""
        now = self._clock()
        row: dict[str, object] = {
            "model_name": self.model_name,
            "host": host,
            "worker": worker,
            "model_version": model_version,
            "generation": generation,
            "error": error,
            "seen_at": iso(now),
        }
        with self._write() as connection:
            long_gone = self._mine(t.heartbeats) & (t.heartbeats.c.seen_at < iso(now - FORGET_WORKERS_AFTER))
            connection.execute(t.heartbeats.delete().where(long_gone))
            self._upsert(connection, t.heartbeats, row)

    def workers(self, within_s: float = 30) -> list[WorkerHeartbeat]:
        """Workers heard of in the last `within_s` seconds, by host and worker."""
        since = iso(self._clock() - timedelta(seconds=within_s))
        query = sa.select(t.heartbeats).where(self._mine(t.heartbeats), t.heartbeats.c.seen_at >= since)
        with self._read() as connection:
            found = connection.execute(query.order_by(t.heartbeats.c.host, t.heartbeats.c.worker))
            return [WorkerHeartbeat.model_validate(values(row)) for row in found]

    def record_positions(self, positions: Mapping[str, int]) -> None:
        """Note the last offset stored in the event log, by '<topic_id>/<partition>'; never goes back."""
        with self._write() as connection:
            known = self._positions(connection)
            for partition, offset in positions.items():
                if offset > known.get(partition, -1):
                    row = {"model_name": self.model_name, "partition": partition, "last_offset": offset}
                    self._upsert(connection, t.positions, row)

    def correct_position(self, partition: str, offset: int) -> int:
        """Set a position to what the event log holds (-1: nothing), be it lower; return what was noted, -1 if nothing was."""
        with self._write() as connection:
            known = self._positions(connection).get(partition, -1)
            if offset < 0 <= known:
                mine = self._mine(t.positions) & (t.positions.c.partition == partition)
                connection.execute(t.positions.delete().where(mine))
            elif offset != known:
                row = {"model_name": self.model_name, "partition": partition, "last_offset": offset}
                self._upsert(connection, t.positions, row)
            return known

    def positions(self) -> dict[str, int]:
        """The last offset stored in the event log, by '<topic_id>/<partition>'."""
        with self._read() as connection:
            return self._positions(connection)

    def _positions(self, connection: sa.Connection) -> dict[str, int]:
        query = sa.select(t.positions.c.partition, t.positions.c.last_offset).where(self._mine(t.positions))
        return {row.partition: row.last_offset for row in connection.execute(query)}

    def _lease(self, name: str) -> sa.ColumnElement[bool]:
        return self._mine(t.leases) & (t.leases.c.name == name)

    def _check_token(self, connection: sa.Connection, token: int | None) -> None:
        """Raise StaleLease unless `token` is the newest one of the scheduler's lease, or None (a person acts)."""
        if token is None:
            return
        newest = connection.execute(sa.select(t.leases.c.token).where(self._lease(SCHEDULER))).scalar()
        if newest != token:
            raise StaleLease(f"fencing token {token} is not the scheduler's any more: it is {newest}")
