"""Leases with fencing tokens: which process may act.

Turns a holder's claim into a token that grows at each change of holder. The scheduler takes a lease; rounds and promotions
check its token.

Wall clocks may be set at any moment and differ between machines, so an expiry in the future proves nothing. A lease that
is not renewed ends after its length by the waiting process's monotonic clock, whatever its expiry.
"""

import time
from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa

from serving.registry import tables as t
from serving.registry.clocks import Unchanged
from serving.registry.database import Database, iso

SCHEDULER = "scheduler"


class StaleLease(RuntimeError):
    """The caller's fencing token is out of date: another process took the lease over."""


class Leases:
    """The leases of one model. `monotonic` returns seconds that never go back."""

    def __init__(self, database: Database, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._unchanged = Unchanged(monotonic)

    def acquire_lease(self, name: str, holder: str, ttl_s: float) -> int | None:
        """Return the fencing token of a lease, taken or renewed for `ttl_s` seconds; None while another process holds it.

        Renewing keeps the token; every change of holder, also after a release, increments it (Kleppmann 2016, "How to do
        distributed locking"). A lease is over when its expiry has passed, or when this object has seen it unrenewed for
        `ttl_s` seconds of the monotonic clock (as Kubernetes' leader election does). Safety rests on the token alone.
        """
        with self._database.write() as connection:
            lease = connection.execute(sa.select(t.leases).where(self._named(name))).first()
            if lease and lease.holder not in (None, holder):
                unrenewed_s = self._unchanged.seconds(f"lease {name}", (lease.holder, lease.token, lease.expires_at))
                if lease.expires_at > self._database.now() and unrenewed_s < ttl_s:
                    return None
            renewed = lease is not None and lease.holder == holder
            token: int = (lease.token if lease else 0) + (0 if renewed else 1)
            expires_at = iso(self._database.clock() + timedelta(seconds=ttl_s))
            key = {"model_name": self._database.model_name, "name": name}
            row = {**key, "holder": holder, "token": token, "expires_at": expires_at}
            self._database.upsert(connection, t.leases, row)
            return token

    def release_lease(self, name: str, holder: str) -> None:
        """Give a lease back, if `holder` has it. Its token stays valid until another process takes the lease."""
        with self._database.write() as connection:
            held = self._named(name) & (t.leases.c.holder == holder)
            connection.execute(t.leases.update().where(held).values(holder=None))

    def check_token(self, connection: sa.Connection, token: int | None) -> None:
        """Raise StaleLease unless `token` is the newest of the scheduler's lease, or None (a person acts)."""
        if token is None:
            return
        newest = connection.execute(sa.select(t.leases.c.token).where(self._named(SCHEDULER))).scalar()
        if newest != token:
            raise StaleLease(f"fencing token {token} of the scheduler's lease is out of date: the newest is {newest}")

    def _named(self, name: str) -> sa.ColumnElement[bool]:
        return self._database.mine(t.leases) & (t.leases.c.name == name)
