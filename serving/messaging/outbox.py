"""The outbox: events stay on local disk until they are safe elsewhere.

Turns events of requests into events on disk. Each serving worker holds one outbox with two threads. The accepting thread
takes events from requests and makes them safe; the sending thread (outbox_sender.py) publishes those on disk and deletes
them when it may.

An event is safe once an fsynced commit has it on this disk, so feedback is answered whatever the broker does. `Keep` says when
the event may be deleted, and knows one mode without a lasting disk.
"""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from schemas.cloudevents import headers_of
from schemas.events import FeedbackReceived, PredictionMade
from serving.messaging.connection import Broker, BrokerUnavailable
from serving.messaging.outbox_disk import Connection, OutboxDisk
from serving.messaging.outbox_sender import Keep, Sender
from serving.messaging.publisher import MAX_MESSAGE_BYTES, Outgoing, Publisher, Topics

log = logging.getLogger("ratchet.outbox")

BATCH = 500
MAX_IN_MEMORY = 50_000  # events between requests and the disk before predictions are dropped
IDLE_SECONDS = 0.2

_Item = tuple[Outgoing, "Future[None] | None"]


class OutboxUnavailable(ConnectionError):
    """The event cannot be made safe now: try again later."""


class Outbox:
    """The events of one worker on their way to Kafka. `put_*` may be called from any thread and never block.

    `published`, `dropped` and `waiting` (on disk) count events. About once a second `observe(waiting, dropped)` is called.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker: Broker,
        topics: Topics,
        keep: Keep,
        stored_positions: Callable[[], dict[str, int]],
        max_bytes: int,
        timeout_s: float,
        observe: Callable[[int, int], None] | None = None,
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._keep = keep
        self._timeout_s = timeout_s
        self._observe = observe
        self._incoming: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closed = False
        self._dropped = self._confirmed = 0
        self.folder = folder
        self._disk = OutboxDisk(folder)
        self._sender = Sender(
            self._disk,
            broker=broker,
            topics=topics,
            keep=keep,
            stored_positions=stored_positions,
            max_bytes=max_bytes,
            timeout_s=timeout_s,
            observe=self._tell,
        )
        self._threads = [
            threading.Thread(target=self._accept_loop, name="outbox-accept", daemon=True),
            threading.Thread(target=self._sender.run, name="outbox-send", daemon=True),
        ]

    @property
    def published(self) -> int:
        """Return the number of events that the broker has confirmed to this process."""
        return self._confirmed + self._sender.published

    @property
    def dropped(self) -> int:
        """Return the number of events that this process has lost: too many, too large, or no disk."""
        return self._dropped + self._sender.dropped

    @property
    def waiting(self) -> int:
        """Return the number of events on disk, as of the last second."""
        return self._sender.waiting

    def start(self) -> None:
        """Start both threads; the events that an earlier process left on disk are published first."""
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float) -> None:
        """Refuse new events, make the accepted ones safe, and publish for at most `timeout_s`; the rest stays on disk."""
        self._closed = True
        self._sender.give_up_in(timeout_s)
        self._incoming.put(None)
        for thread in self._threads:
            thread.join(self._sender.seconds_left() + 1 if thread.ident else 0)
        if not any(thread.is_alive() for thread in self._threads):
            self._disk.close()

    def put_prediction(self, event: PredictionMade) -> None:
        """Accept an event; if the outbox is full or closed, drop and count it."""
        self.put_prediction_bytes(event.data.prediction_id, event.model_dump_json().encode())

    def put_prediction_bytes(self, prediction_id: str, value: bytes) -> None:
        """Accept an event that is JSON already, like `put_prediction`."""
        too_many = self._sender.full or self._incoming.qsize() > MAX_IN_MEMORY
        if too_many or self._closed or len(value) > MAX_MESSAGE_BYTES:
            self._dropped += 1
            return
        self._incoming.put((Outgoing(self._topics.predictions, prediction_id.encode(), value, headers_of(value)), None))

    def put_feedback(self, event: FeedbackReceived) -> "Future[None]":
        """Accept an event; the returned future is done once it is safe, or fails with OutboxUnavailable."""
        done: Future[None] = Future()
        value = event.model_dump_json().encode()
        if self._closed:
            done.set_exception(OutboxUnavailable("this worker is stopping"))
        elif len(value) > MAX_MESSAGE_BYTES:
            done.set_exception(
                OutboxUnavailable(f"the feedback event has {len(value)} bytes, at most {MAX_MESSAGE_BYTES} allowed")
            )
        else:
            message = Outgoing(self._topics.feedback, event.data.prediction_id.encode(), value, headers_of(value))
            self._incoming.put((message, done))
        return done

    def _accept_loop(self) -> None:
        disk = Connection(self._disk, "FULL")
        direct = Publisher(self._broker, timeout_s=self._timeout_s)
        running = True
        while running:
            items, running = self._take()
            try:
                if items and self._keep is Keep.NOTHING:
                    self._publish_now(disk, direct, items)
                elif items:
                    disk.write([message for message, _ in items])
                    _confirm(items)
            except Exception as error:
                disk.failed(error)
                self._dropped += sum(done is None for _, done in items)
                self._sender.log_error(
                    f"the outbox cannot write: {error}: feedback is refused and predictions are dropped"
                )
                _refuse(items, f"the outbox cannot write: {error}")
            if items:
                self._sender.wake()
        direct.close()
        disk.close()
        self._sender.end()

    def _take(self) -> tuple[list[_Item], bool]:
        """Return the events of the next moment, and False once the outbox is closed."""
        items: list[_Item] = []
        try:
            item = self._incoming.get(timeout=IDLE_SECONDS)
            while item is not None:
                items.append(item)
                if len(items) >= BATCH:
                    return items, True
                item = self._incoming.get_nowait()
        except queue.Empty:
            return items, True
        return items, False

    def _publish_now(self, disk: Connection, direct: Publisher, items: list[_Item]) -> None:
        """Publish; if the broker is unreachable, refuse feedback at once and write predictions to disk."""
        reason = f"broker {self._broker} is unreachable"
        if not self._sender.away:
            try:
                direct.publish_many([message for message, _ in items])
            except BrokerUnavailable as error:
                self._sender.away, reason = True, str(error)
            else:
                self._confirmed += len(items)
                _confirm(items)
                return
        _refuse(items, reason)
        disk.write([message for message, done in items if done is None])

    def _tell(self) -> None:
        if self._observe is not None:
            self._observe(self.waiting, self.dropped)


def _confirm(items: list[_Item]) -> None:
    for _, done in items:
        if done is not None and done.set_running_or_notify_cancel():
            done.set_result(None)


def _refuse(items: list[_Item], reason: str) -> None:
    for _, done in items:
        if done is not None and not done.done() and done.set_running_or_notify_cancel():
            done.set_exception(OutboxUnavailable(reason))
