"""The outbox: events stay on local disk until they are safe elsewhere.

Turns events into published messages. Each serving worker holds one outbox with two threads. The accepting thread takes
events from requests and makes them safe; the sending thread publishes those on disk and deletes them when it may.

The embedded broker (`write_ahead`) loses everything when it stops. An event is safe once an fsynced commit has it on this
disk; it stays there until the event log's position has passed it. If its topic is recreated meanwhile, it is published
again under the same id. With a real Kafka an event is safe once acks=all confirmed it; while Kafka is unreachable,
predictions wait on disk and feedback is refused.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from schemas.events import FeedbackReceived, PredictionMade
from serving.messaging import outbox_store
from serving.messaging.outbox_disk import Connection, OutboxDisk
from serving.messaging.publisher import MAX_MESSAGE_BYTES, BrokerUnavailable, Outgoing, Publisher, Topics, topic_ids

log = logging.getLogger("ratchet.outbox")

BATCH = 500
MAX_IN_MEMORY = 50_000  # events between requests and the disk before predictions are dropped
IDLE_SECONDS, TIDY_SECONDS = 0.2, 1.0
RETRY_SECONDS, ADOPT_SECONDS = 0.5, 10.0
REPEAT_SECONDS = 30.0  # before the same error is logged again

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
        bootstrap: str,
        topics: Topics,
        write_ahead: bool,
        stored_positions: Callable[[], dict[str, int]],
        max_bytes: int,
        timeout_s: float,
        observe: Callable[[int, int], None] | None = None,
    ) -> None:
        self._bootstrap = bootstrap
        self._observe = observe
        self._topics = topics
        self._write_ahead = write_ahead
        self._stored_positions = stored_positions
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._incoming: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._topic_ids: dict[str, str] = {}
        self._checked_ids: dict[str, str] = {}  # topic ids with which the events on disk were last compared
        self._retry_at = self._tidy_at = self._adopt_at = 0.0
        self._full = self._away = self._closed = False
        self._give_up_at = float("inf")
        self._wake, self._accepted_all = threading.Event(), threading.Event()
        self.published = self.dropped = self.waiting = 0
        self.folder = folder
        self._disk = OutboxDisk(folder)
        self._unrecorded: list[tuple[str, list[tuple[object, ...]]]] = []  # SQL and rows of what was published
        self._last_error, self._era = ("", 0.0), 0
        self._threads = [
            threading.Thread(target=self._accept_loop, name="outbox-accept", daemon=True),
            threading.Thread(target=self._send_loop, name="outbox-send", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads; the events that an earlier process left on disk are published first."""
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float) -> None:
        """Refuse new events, make the accepted ones safe, and publish for at most `timeout_s`; the rest stays on disk."""
        self._closed = True
        self._give_up_at = time.monotonic() + timeout_s
        self._incoming.put(None)
        for thread in self._threads:
            thread.join(max(0.0, self._give_up_at + 1 - time.monotonic()) if thread.ident else 0)
        if not any(thread.is_alive() for thread in self._threads):
            self._disk.close()

    def put_prediction(self, event: PredictionMade) -> None:
        """Accept an event; if the outbox is full or closed, drop and count it."""
        self.put_prediction_bytes(event.data.prediction_id, event.model_dump_json().encode())

    def put_prediction_bytes(self, prediction_id: str, value: bytes) -> None:
        """Accept an event that is JSON already, like `put_prediction`."""
        if self._full or self._closed or len(value) > MAX_MESSAGE_BYTES or self._incoming.qsize() > MAX_IN_MEMORY:
            self.dropped += 1
            return
        self._incoming.put((Outgoing(self._topics.predictions, prediction_id.encode(), value), None))

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
            self._incoming.put((Outgoing(self._topics.feedback, event.data.prediction_id.encode(), value), done))
        return done

    # --- the accepting thread: makes events safe ----------------------------------------------------------------------

    def _accept_loop(self) -> None:
        disk = Connection(self._disk, "FULL")
        direct = Publisher(self._bootstrap, timeout_s=self._timeout_s)
        running = True
        while running:
            items, running = self._take()
            try:
                if items and self._write_ahead:
                    disk.write([message for message, _ in items])
                    _confirm(items)
                elif items:
                    self._publish_now(disk, direct, items)
            except Exception as error:
                disk.failed(error)
                dropped = sum(done is None for _, done in items)
                self.dropped += dropped
                self._log_error(f"the outbox cannot write: {error}: feedback is refused and predictions are dropped")
                _refuse(items, f"the outbox cannot write: {error}")
            if items:
                self._wake.set()
        direct.close()
        disk.close()
        self._accepted_all.set()
        self._wake.set()

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
        reason = f"broker {self._bootstrap} is unreachable"
        if not self._away:
            try:
                direct.publish_many([message for message, _ in items])
            except BrokerUnavailable as error:
                self._away, reason = True, str(error)
            else:
                self.published += len(items)
                _confirm(items)
                return
        _refuse(items, reason)
        disk.write([message for message, done in items if done is None])

    # --- the sending thread: publishes from disk ----------------------------------------------------------------------

    def _send_loop(self) -> None:
        disk = Connection(self._disk, "NORMAL")  # a lost commit only means that events are published again
        publisher = Publisher(self._bootstrap, timeout_s=self._timeout_s)
        running = True
        while running:
            self._wake.wait(IDLE_SECONDS)
            self._wake.clear()
            running = not self._accepted_all.is_set()
            try:
                self._adopt(disk)
                connection = disk.get()
                if self._era != self._disk.era:  # the file was replaced: its events have other numbers
                    self._era, self._unrecorded, self._checked_ids = self._disk.era, [], {}
                self._record_published(connection)
                self._publish_waiting(disk.get(), publisher)
                self._tidy(disk.get())
            except BrokerUnavailable as error:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                self._topic_ids = {}
                if not self._away:
                    log.warning("events wait on disk: %s", error)
                self._away = True
            except Exception as error:
                if isinstance(error, sqlite3.Error | OSError) and not isinstance(error, ConnectionError):
                    disk.failed(error)
                self._log_error(f"the outbox cannot publish: {type(error).__name__}: {error}; it tries again")
                self._retry_at = time.monotonic() + RETRY_SECONDS
        publisher.close()
        disk.close()

    def _log_error(self, line: str) -> None:
        """Log a line, unless it is the last one and that was less than REPEAT_SECONDS ago: both loops retry often."""
        last, at = self._last_error
        if line != last or time.monotonic() - at > REPEAT_SECONDS:
            self._last_error = (line, time.monotonic())
            log.error("%s", line)

    def _publish_waiting(self, disk: sqlite3.Connection, publisher: Publisher) -> None:
        """Publish in order the events that have not been published. Raises BrokerUnavailable."""
        topics = (self._topics.predictions, self._topics.feedback)
        while self._retry_at < time.monotonic() < self._give_up_at:
            rows = outbox_store.unpublished(disk, topics, BATCH)
            if not rows and not self._away:
                return
            if not self._topic_ids:
                # Read before publishing: an event must never carry the id of a topic created after the event was sent.
                ids = topic_ids(self._bootstrap, self._topics.names(), timeout_s=self._timeout_s)
                if missing := sorted(set(topics) - ids.keys()):
                    raise BrokerUnavailable(f"broker {self._bootstrap} has no topic {', '.join(missing)}")
                self._topic_ids = ids
            self._away = False
            positions = publisher.publish_many([Outgoing(topic, key, value) for _, topic, key, value in rows])
            self.published += len(rows)
            if self._write_ahead:
                published: list[tuple[object, ...]] = [
                    (f"{self._topic_ids[p.topic]}/{p.partition}", p.offset, row[0])
                    for p, row in zip(positions, rows, strict=True)
                ]
                self._unrecorded.append((outbox_store.RECORD_PUBLISHED, published))
            else:
                self._unrecorded.append((outbox_store.DELETE, [(row[0],) for row in rows]))
            self._record_published(disk)

    def _record_published(self, disk: sqlite3.Connection) -> None:
        """Record what was published, before more is: on a full disk the same events would be published without end."""
        for statement, rows in self._unrecorded:
            disk.executemany(statement, rows)
        if self._unrecorded:
            disk.commit()
            self._unrecorded = []

    def _tidy(self, disk: sqlite3.Connection) -> None:
        """Every second: measure the file, delete stored events, make those of a recreated topic unpublished again."""
        if time.monotonic() < self._tidy_at:
            return
        self._tidy_at = time.monotonic() + TIDY_SECONDS
        self.waiting = outbox_store.count(disk)
        if self._observe is not None:
            self._observe(self.waiting, self.dropped)
        self._full = outbox_store.used_bytes(disk) > self._max_bytes
        if not outbox_store.any_published(disk):
            return
        stored = self._stored_positions()
        # Compare topic ids before deleting: an event sent just after the broker came back carries the lost topic's id,
        # and would pass for stored.
        self._topic_ids = topic_ids(self._bootstrap, self._topics.names(), timeout_s=self._timeout_s)
        lost = 0
        if self._topic_ids != self._checked_ids:  # the update reads every event: not each second
            lost = outbox_store.forget_publications(disk, self._topic_ids.values())
            self._checked_ids = self._topic_ids
        outbox_store.delete_stored(disk, stored)
        if lost:
            log.warning("the broker's topics were recreated: %d events are published again", lost)
            self._topic_ids = {}
            self._wake.set()

    def _adopt(self, disk: Connection) -> None:
        """Move events here from outboxes that no living process holds: there may be fewer workers than before."""
        if time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + ADOPT_SECONDS
            disk.get()
            if self._disk.adopt(disk):
                self._checked_ids = {}


def _confirm(items: list[_Item]) -> None:
    for _, done in items:
        if done is not None and done.set_running_or_notify_cancel():
            done.set_result(None)


def _refuse(items: list[_Item], reason: str) -> None:
    for _, done in items:
        if done is not None and not done.done() and done.set_running_or_notify_cancel():
            done.set_exception(OutboxUnavailable(reason))
