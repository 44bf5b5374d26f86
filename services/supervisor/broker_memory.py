"""The embedded broker's memory: restart the broker before its topics fill the machine.

Turns the broker's resident memory into a restart. The broker keeps every message until it stops, and has no retention. What it
holds is also elsewhere: stored events in the event log, all others in outboxes, which publish them again when a topic is
recreated. Only dead letters exist nowhere else; they are read before the restart and published again after it.

The supervisor (up.py) calls `watch`. With a real Kafka there is nothing to watch.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from schemas.settings import Settings
from services.supervisor.children import Child
from serving.messaging.connection import Broker, BrokerUnavailable
from serving.messaging.consumer import Backlog
from serving.messaging.outbox_store import waiting
from serving.messaging.project_topics import make_topics
from serving.messaging.publisher import Outgoing, Publisher, Topics

LOOK_S, SHORT_LOOK_S = 5.0, 0.3
APART_S = 30.0  # between two restarts
PATIENCE = 1.5  # times the limit: then it no longer waits for a moment at which everything is stored
MANY_WAITING = 10_000  # events in outboxes: a restart would free little, because they are published again
PUBLISH_S, BATCH = 5.0, 500


def resident_bytes(pid: int | None) -> int | None:
    """Return the resident memory of a process; None without /proc or process."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


class BrokerMemory:
    """Restarts the embedded broker when it is too large.

    Args:
        child: the running broker.
        broker: how to connect to it.
        settings: of the project.
        resident: resident bytes of a process, given its id; None if unknown.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        child: Child,
        broker: Broker,
        settings: Settings,
        *,
        resident: Callable[[int | None], int | None] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._child = child
        self._broker = broker
        self._settings = settings
        self._limit = settings.kafka.broker_memory_mb * 10**6
        self._outboxes = settings.path(settings.serving.outbox)
        self._topics = Topics.of(settings.stream_name)
        self._resident = resident
        self._clock = clock
        self._look_at = self._restart_after = 0.0
        self._restoring = False
        self._letters: list[Outgoing] = []

    def watch(self) -> list[str]:
        """Restart the broker if it is due; return the lines to show. Never raises."""
        now = self._clock()
        if now < self._look_at or not self._child.alive:
            return []
        self._look_at = now + LOOK_S
        try:
            if self._restoring:
                self._look_at = now + SHORT_LOOK_S
                self._restore()
            used = self._resident(self._child.pid) or 0
            if used < self._limit or now < self._restart_after:
                return []
            self._look_at = now + SHORT_LOOK_S
            return self._restart(used) if self._may_restart(used) else []
        except BrokerUnavailable:
            return []  # it starts, or is busy: look again

    def _may_restart(self, used: int) -> bool:
        """Return whether everything is stored, or whether a restart frees memory and can wait no longer."""
        try:
            events = waiting(self._outboxes)
        except sqlite3.Error:  # its worker repairs it
            return False
        if used >= PATIENCE * self._limit:
            return events < MANY_WAITING
        return events == 0 and all(self._is_read(topic) for topic in (self._topics.predictions, self._topics.feedback))

    def _is_read(self, topic: str) -> bool:
        with Backlog(self._broker, topic, reader=self._topics.consumer_group) as backlog:
            return not any(backlog.batches())

    def _restart(self, used: int) -> list[str]:
        dead_letters = self._topics.dead_letters
        with Backlog(self._broker, dead_letters, reader=self._topics.replay_group) as backlog:
            letters = [letter for batch in backlog.batches() for letter in batch]
        self._letters = [
            Outgoing(
                dead_letters, letter.key or b"", letter.value or b"", tuple((k, v or b"") for k, v in letter.headers)
            )
            for letter in letters
        ]
        self._child.restart()
        self._restoring, self._restart_after = True, self._clock() + APART_S
        kept = f"; {len(letters)} dead letters are kept" if letters else ""
        return [
            f"used {used / 1e6:.0f} MB of memory (kafka.broker_memory_mb = {self._limit // 10**6}): restarted{kept}"
        ]

    def _restore(self) -> None:
        """Create the topics and publish the dead letters again. Raises BrokerUnavailable."""
        make_topics(self._settings, self._broker)
        with contextlib.closing(Publisher(self._broker, timeout_s=PUBLISH_S)) as publisher:
            while self._letters:
                publisher.publish_many(self._letters[:BATCH])
                del self._letters[:BATCH]
        self._restoring = False
