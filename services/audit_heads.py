"""Write the audit log's head elsewhere: to a file, a Kafka topic, or both, each time it has moved.

Turns the settings registry.audit_head_file and audit_head_topic into lines and messages. The scheduler calls it between ticks,
and every promotion at once. It never raises: a copy that cannot be written now is written at the next call, and is logged.
"""

import logging
import os
import time
from pathlib import Path

from schemas.settings import Settings
from serving.messaging.connection import Broker
from serving.registry.registry import Registry
from serving.registry.safeguards.audit_heads import Head, head_of

log = logging.getLogger("ratchet.audit")

EVERY_S = 10.0
TIMEOUT_S = 2.0


class HeadKeeper:
    """Keeps the copies of one registry's head.

    Args:
        settings: say where.
        registry: whose audit log it is.
        broker: for the topic; None: there is none now.

    """

    def __init__(self, settings: Settings, registry: Registry, broker: Broker | None) -> None:
        self._registry = registry
        self._broker = broker
        self._file = settings.path(settings.registry.audit_head_file) if settings.registry.audit_head_file else None
        self._topic = settings.registry.audit_head_topic
        self._written: dict[str, str] = {}  # "file" or "topic" -> hash of the last head there
        self._again_at = 0.0

    def keep(self) -> None:
        """Write the head if it has moved, and if EVERY_S have passed since the last call that looked."""
        if time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + EVERY_S
            self.write()

    def write(self) -> None:
        """Write the head wherever the newest copy is an older one."""
        if self._file is None and self._topic is None:
            return
        try:
            head = head_of(self._registry)
        except ConnectionError as error:
            log.warning("the audit log's head was not written: %s", error)
            return
        if head is not None:
            for kept_in, write in (("file", self._append), ("topic", self._publish)):
                if self._written.get(kept_in) != head.hash:
                    try:
                        write(head)
                        self._written[kept_in] = head.hash
                    except Exception as error:  # a full disk or an absent broker: the next call tries again
                        log.warning("the audit log's head was not written to its %s: %s", kept_in, error)

    def _append(self, head: Head) -> None:
        if self._file is None or _last_hash(self._file) == head.hash:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as file:
            file.write(head.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _publish(self, head: Head) -> None:
        if self._topic is None or self._broker is None:
            return
        from serving.messaging.publisher import Outgoing, Publisher

        publisher = Publisher(self._broker, timeout_s=TIMEOUT_S)
        try:
            message = Outgoing(self._topic, head.model_name.encode(), head.model_dump_json().encode())
            publisher.publish_many([message])
        finally:
            publisher.close()


def _last_hash(file: Path) -> str | None:
    """Return the hash in the last line of a file of heads; None if there is none."""
    try:
        with file.open("rb") as lines:
            lines.seek(max(0, file.stat().st_size - 4096))
            last = lines.read().splitlines()[-1:]
        return Head.model_validate_json(last[0]).hash if last else None
    except (FileNotFoundError, ValueError):
        return None
