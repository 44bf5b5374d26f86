"""Accepting connections: share them between workers, and keep their number below the limit of open files.

Turns limits into the protocol class that uvicorn uses. service.py calls it. connections.py holds the limits of a single
connection.
"""

import asyncio
import resource
import time
from typing import ClassVar

from serving.http.connections import Connection, Limits, OpenConnections

SPARE_FILES = 256  # for the model, the outbox, the registry and the broker, which take about 40 at rest
ACCEPT_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1e-4, 2e-3
PAUSED_SHARE, PAUSED_BURST_SECONDS = 0.02, 0.05


class SharedConnection(Connection):
    """A connection after which the worker pauses, so that other workers accept the next ones.

    Workers accept from one socket. Without the pause, the first to wake takes a whole burst of connections and keeps them,
    while the others stay idle. The pause grows with the open connections. It blocks the event loop, not the model; its share
    of the time is at most PAUSED_SHARE, beyond a burst.
    """

    credit: ClassVar[float] = PAUSED_BURST_SECONDS
    credited_at: ClassVar[float] = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pause, so that another worker accepts the next connection."""
        super().connection_made(transport)
        now = time.monotonic()
        credit = min(
            PAUSED_BURST_SECONDS, SharedConnection.credit + PAUSED_SHARE * (now - SharedConnection.credited_at)
        )
        pause = min(LONGEST_PAUSE_SECONDS, ACCEPT_PAUSE_SECONDS * len(self.connections), credit)
        if pause < ACCEPT_PAUSE_SECONDS:  # a sleep this short would take longer than it says
            pause = 0.0
        SharedConnection.credit, SharedConnection.credited_at = credit - pause, now
        if pause:
            time.sleep(pause)


def open_file_limit(wanted: int) -> int:
    """Raise this process's limit of open files as far as allowed; return how many of `wanted` connections fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - min(SPARE_FILES, soft // 2))


def protocol(limits: Limits, *, workers: int = 2) -> type[Connection]:
    """Return a protocol class whose connections share these limits, for one event loop of one of `workers` processes."""
    base = SharedConnection if workers > 1 else Connection
    return type("Bounded", (base,), {"opened": OpenConnections(limits)})
