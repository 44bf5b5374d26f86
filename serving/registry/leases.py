"""Leases, worker heartbeats and stored positions: who may act, who is alive, how far the event log is.

Turns a holder's claim into a fencing token, and what processes say of themselves into what others may ask. The scheduler
takes leases, serving beats, the consumer records positions. It deliberately does not know what a lease protects.

Wall clocks may be set at any moment and differ between machines, so a time in the future proves nothing: a lease that
nobody renews ends after its length by the waiter's own monotonic clock, whatever its expiry says.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa

from schemas.records import WorkerHeartbeat
from serving.registry import tables as t
from serving.registry.database import Database, iso, values

SCHEDULER = "scheduler"
FORGET_WORKERS_AFTER = timedelta(days=1)
CLOCK_SLACK_S = 60.0  # seconds by which clocks may differ, and leases lie ahead, without anybody being told


class StaleLease(RuntimeError):
    """The caller's fencing token is not the lease's any more: somebody else took over."""


class Leases(Database):
    """Leases, heartbeats and positions of one model."""

    def acquire_lease(self, name: str, holder: str, ttl_s: float) -> int | None:
        """Return the fencing token of a lease, taken or renewed for `ttl_s` seconds; None while another holds it.

        Renewing keeps the token; every taking over, also after a release, makes it grow (Kleppmann 2016, "How to do
        distributed locking"). A lease is over when its expiry has passed, or when this object has seen it unrenewed for
        `ttl_s` seconds of the monotonic clock (as Kubernetes' leader election does). Safety rests on the token alone.
        """
        with self._write() as connection:
            found = connection.execute(sa.select(t.leases).where(self._lease(name))).first()
            if found and found.holder not in (None, holder):
                unrenewed_s = self._unchanged.seconds(f"lease {name}", (found.holder, found.token, found.expires_at))
                if found.expires_at > self._now() and unrenewed_s < ttl_s:
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
        """Note what a serving worker serves; forget workers last heard of more than a day from now, before or ahead."""
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
            silent = t.heartbeats.c.seen_at < iso(now - FORGET_WORKERS_AFTER)
            ahead = t.heartbeats.c.seen_at > iso(now + FORGET_WORKERS_AFTER)  # of a clock that has been set back since
            connection.execute(t.heartbeats.delete().where(self._mine(t.heartbeats) & (silent | ahead)))
            self._upsert(connection, t.heartbeats, row)

    def workers(self, within_s: float = 30) -> list[WorkerHeartbeat]:
        """Return the workers heard of within `within_s` seconds, by host and worker.

        A heartbeat further ahead than that is of before the clock was set back: who lives beats again in seconds.
        """
        now, within = self._clock(), timedelta(seconds=within_s)
        near = t.heartbeats.c.seen_at.between(iso(now - within), iso(now + within))
        query = sa.select(t.heartbeats).where(self._mine(t.heartbeats), near)
        with self._read() as connection:
            found = connection.execute(query.order_by(t.heartbeats.c.host, t.heartbeats.c.worker))
            return [WorkerHeartbeat.model_validate(values(row)) for row in found]

    def seconds_ahead(self) -> float:
        """Return by how many seconds the newest time that the registry holds is ahead of this clock; 0 below a minute.

        More means that this clock was set back since, or that another machine's clock is ahead.
        """
        columns = (t.leases.c.expires_at, t.heartbeats.c.seen_at, t.promotions.c.promoted_at, t.versions.c.created_at)
        with self._read() as connection:
            newest = [
                connection.execute(sa.select(sa.func.max(column)).where(self._mine(column.table))).scalar()
                for column in (*columns, t.audit.c.at)
            ]
        ahead = max(
            (datetime.fromisoformat(text) - self._clock()).total_seconds() for text in [*newest, self._now()] if text
        )
        return ahead if ahead > CLOCK_SLACK_S else 0.0

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
