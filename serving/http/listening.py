"""How a worker takes connections in: its share of them, and as many as it has files for.

Turns limits into the protocol class that uvicorn makes connections with. service.py calls it. It deliberately knows no HTTP:
what one connection may do is connections.py's.
"""

import asyncio
import resource
import time
from typing import ClassVar

from serving.http.connections import Connection, Limits, OpenConnections

SPARE_FILES = 256  # of the model, the outbox, the registry and the broker
ACCEPT_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1e-4, 2e-3
PAUSED_SHARE, PAUSED_BURST_SECONDS = 0.02, 0.05


class Patient(Connection):
    """A connection that gives other workers their share, with a pause after each new one, the longer the more are open.

    Workers accept from one socket. Without the pause the one that wakes first takes a whole burst of connections, and keeps
    them for as long as they live, while the others have nothing to do. The pause stops the loop, though not the model: callers
    who open a connection for every request may spend PAUSED_SHARE of it that way, beyond a burst.
    """

    credit: ClassVar[float] = PAUSED_BURST_SECONDS
    credited_at: ClassVar[float] = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let another worker have the next one."""
        super().connection_made(transport)
        now = time.monotonic()
        credit = min(PAUSED_BURST_SECONDS, Patient.credit + PAUSED_SHARE * (now - Patient.credited_at))
        pause = min(LONGEST_PAUSE_SECONDS, ACCEPT_PAUSE_SECONDS * len(self.connections), credit)
        Patient.credit, Patient.credited_at = credit - pause, now
        time.sleep(pause)


def open_file_limit(wanted: int) -> int:
    """Raise this process's limit of open files as far as it may; return how many of `wanted` connections fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))


def protocol(limits: Limits) -> type[Patient]:
    """A class of connections that share these limits, for one event loop."""
    return type("Bounded", (Patient,), {"opened": OpenConnections(limits)})
