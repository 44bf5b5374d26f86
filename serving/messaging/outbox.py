"""Events on local disk until they are safe.

Turns events into published messages. Each serving worker owns one outbox; two threads work for it: one takes what
requests put and makes it safe, the other publishes what lies on disk and forgets it once that is allowed. It
deliberately knows no HTTP.

With the embedded broker (`write_ahead`), which forgets everything when it stops, an event is safe once one fsynced
commit has it on this disk; it stays there until the event log's position has passed it, and is published again under
the same id when its topic was made anew. With a real Kafka an event is safe once acks=all confirmed it; only
predictions wait on disk while it is away.
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
from serving.messaging.outbox_disk import Connection, OutboxDisk
from serving.messaging.outbox_store import count
from serving.messaging.publisher import MAX_MESSAGE_BYTES, BrokerUnavailable, Outgoing, Publisher, Topics, topic_ids

log = logging.getLogger("ratchet.outbox")

BATCH = 500
IN_MEMORY = 50_000  # events between a request and the disk before predictions are dropped
IDLE_SECONDS, TIDY_SECONDS = 0.2, 1.0
RETRY_SECONDS, ADOPT_SECONDS = 0.5, 10.0
SAY_SECONDS = 30.0  # before the same complaint is logged again

_Item = tuple[Outgoing, "Future[None] | None"]


class OutboxUnavailable(ConnectionError):
    """The event cannot be made safe now."""


class Outbox:
    """The events of one worker on their way to Kafka. `put_*` may be called from any thread and never block.

    `published`, `dropped` and `waiting` (on disk) count events; `observe` is told the last two every second or so.
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
        self._checked_ids: dict[str, str] = {}  # of topics against which every place on disk was held
        self._retry_at = self._tidy_at = self._adopt_at = 0.0
        self._full = self._away = self._closed = False
        self._give_up_at = float("inf")
        self._wake, self._accepted_all = threading.Event(), threading.Event()
        self.published = self.dropped = self.waiting = 0
        self.folder = folder
        self._disk = OutboxDisk(folder)
        self._unwritten: list[tuple[str, list[tuple[object, ...]]]] = []  # what was published and could not be noted
        self._said, self._era = ("", 0.0), 0
        self._threads = [
            threading.Thread(target=self._accept_loop, name="outbox-accept", daemon=True),
            threading.Thread(target=self._send_loop, name="outbox-send", daemon=True),
        ]

    def start(self) -> None:
        """Begin to publish, first what an earlier process left. While the disk refuses, so is feedback, by `put_feedback`."""
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float) -> None:
        """Take no more, make safe what was put, publish what can be published in `timeout_s`; the rest stays on disk."""
        self._closed = True
        self._give_up_at = time.monotonic() + timeout_s
        self._incoming.put(None)
        for thread in self._threads:
            thread.join(max(0.0, self._give_up_at + 1 - time.monotonic()) if thread.ident else 0)
        if not any(thread.is_alive() for thread in self._threads):
            self._disk.close()

    def put_prediction(self, event: PredictionMade) -> None:
        """Take an event. Past the outbox's bound it is dropped and counted."""
        self.put_prediction_bytes(event.data.prediction_id, event.model_dump_json().encode())

    def put_prediction_bytes(self, prediction_id: str, value: bytes) -> None:
        """The same for an event that is JSON already."""
        if self._full or self._closed or len(value) > MAX_MESSAGE_BYTES or self._incoming.qsize() > IN_MEMORY:
            self.dropped += 1
            return
        self._incoming.put((Outgoing(self._topics.predictions, prediction_id.encode(), value), None))

    def put_feedback(self, event: FeedbackReceived) -> "Future[None]":
        """Take an event; the future is done once it is safe, or fails with OutboxUnavailable."""
        done: Future[None] = Future()
        value = event.model_dump_json().encode()
        if self._closed:
            done.set_exception(OutboxUnavailable("this worker is stopping"))
        elif len(value) > MAX_MESSAGE_BYTES:
            done.set_exception(OutboxUnavailable(f"a feedback of {len(value)} bytes, {MAX_MESSAGE_BYTES} at most"))
        else:
            self._incoming.put((Outgoing(self._topics.feedback, event.data.prediction_id.encode(), value), done))
        return done

    # --- the accepting thread: from requests to safety ----------------------------------------------------------------

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
                self._say(f"the outbox cannot write: {error}: feedback is refused and predictions are dropped")
                _refuse(items, f"the outbox cannot write: {error}")
            if items:
                self._wake.set()
        direct.close()
        disk.close()
        self._accepted_all.set()
        self._wake.set()

    def _take(self) -> tuple[list[_Item], bool]:
        """What has come within a moment; False at the end."""
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
        """Safe is what the broker confirmed; while it is away, predictions go to disk and feedback is refused at once."""
        reason = f"broker {self._bootstrap} is away"
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

    # --- the sending thread: from disk to the broker ------------------------------------------------------------------

    def _send_loop(self) -> None:
        disk = Connection(self._disk, "NORMAL")  # what it writes can be lost: it would only publish again
        publisher = Publisher(self._bootstrap, timeout_s=self._timeout_s)
        running = True
        while running:
            self._wake.wait(IDLE_SECONDS)
            self._wake.clear()
            running = not self._accepted_all.is_set()
            try:
                self._adopt(disk)
                connection = disk.get()
                if self._era != self._disk.era:  # another file, whose events have other numbers
                    self._era, self._unwritten, self._checked_ids = self._disk.era, [], {}
                self._note_published(connection)
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
                self._say(f"the outbox cannot go on: {type(error).__name__}: {error}")
                self._retry_at = time.monotonic() + RETRY_SECONDS
        publisher.close()
        disk.close()

    def _say(self, line: str) -> None:
        """Log a line, the same one every SAY_SECONDS at most: both loops come by again and again."""
        said, at = self._said
        if line != said or time.monotonic() - at > SAY_SECONDS:
            self._said = (line, time.monotonic())
            log.error("%s", line)

    def _publish_waiting(self, disk: sqlite3.Connection, publisher: Publisher) -> None:
        """Publish in order what has no place yet. Raises BrokerUnavailable."""
        names = (self._topics.predictions, self._topics.feedback)
        query = "SELECT sequence, topic, key, value FROM events WHERE place IS NULL AND topic IN (?,?) ORDER BY sequence LIMIT ?"
        while self._retry_at < time.monotonic() < self._give_up_at:
            rows = disk.execute(query, (*names, BATCH)).fetchall()
            if not rows and not self._away:
                return
            if not self._topic_ids:
                # Looked up before publishing: a place must never name a topic made after the message was sent.
                found = topic_ids(self._bootstrap, self._topics.names(), timeout_s=self._timeout_s)
                if missing := sorted(set(names) - found.keys()):
                    raise BrokerUnavailable(f"broker {self._bootstrap} has no topic {', '.join(missing)}")
                self._topic_ids = found
            self._away = False
            positions = publisher.publish_many([Outgoing(topic, key, value) for _, topic, key, value in rows])
            self.published += len(rows)
            if self._write_ahead:
                placed = [
                    (f"{self._topic_ids[p.topic]}/{p.partition}", p.offset, row[0])
                    for p, row in zip(positions, rows, strict=True)
                ]
                self._unwritten.append(("UPDATE events SET place = ?, last = ? WHERE sequence = ?", list(placed)))
            else:
                self._unwritten.append(("DELETE FROM events WHERE sequence = ?", [(row[0],) for row in rows]))
            self._note_published(disk)

    def _note_published(self, disk: sqlite3.Connection) -> None:
        """Note what was published, before anything more is: a full disk would else have it published again and again."""
        for statement, rows in self._unwritten:
            disk.executemany(statement, rows)
        if self._unwritten:
            disk.commit()
            self._unwritten = []

    def _tidy(self, disk: sqlite3.Connection) -> None:
        """Every second: look at the size, forget what is stored, publish again what a new topic has never seen."""
        if time.monotonic() < self._tidy_at:
            return
        self._tidy_at = time.monotonic() + TIDY_SECONDS
        self._count(disk)
        if disk.execute("SELECT 1 FROM events WHERE place IS NOT NULL LIMIT 1").fetchone():
            stored = self._stored_positions()
            # A place is believed only while its topic is still there: a message sent just after the broker came back
            # carries the lost topic's id and would pass for stored. So first take such places away, then delete.
            self._topic_ids = topic_ids(self._bootstrap, self._topics.names(), timeout_s=self._timeout_s)
            lost = 0
            if self._topic_ids != self._checked_ids:  # else every event is looked at, each second that nobody consumes
                known = [f"{identity}/%" for identity in self._topic_ids.values()]
                gone = "".join(" AND place NOT LIKE ?" for _ in known)
                lost = disk.execute(f"UPDATE events SET place = NULL WHERE place IS NOT NULL{gone}", known).rowcount  # noqa: S608
                self._checked_ids = self._topic_ids
            disk.executemany("DELETE FROM events WHERE place = ? AND last <= ?", list(stored.items()))
            disk.commit()
            if lost:
                log.warning("the broker's topics were made anew: %d events are published again", lost)
                self._topic_ids = {}
                self._wake.set()

    def _count(self, disk: sqlite3.Connection) -> None:
        self.waiting = count(disk)
        if self._observe is not None:
            self._observe(self.waiting, self.dropped)
        pages = disk.execute("PRAGMA page_count").fetchone()[0] - disk.execute("PRAGMA freelist_count").fetchone()[0]
        self._full = pages * disk.execute("PRAGMA page_size").fetchone()[0] > self._max_bytes

    def _adopt(self, disk: Connection) -> None:
        """Take over the events of outboxes that no living process holds: there may be fewer workers than before."""
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
