"""Events on local disk until they are safe.

Turns events into published messages: one thread takes what requests put, writes it to SQLite in one fsynced commit,
publishes it in order and forgets it once it is safe. Each serving worker owns one outbox. It deliberately knows no HTTP.

With the embedded broker (`write_ahead`), which forgets everything when it stops, an event is safe on this disk, stays
there until the event log's position has passed it, and is published again under the same id when its topic was made
anew. With a real Kafka an event is safe once acks=all confirmed it; only predictions wait on disk while it is away.
"""

import contextlib
import fcntl
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from schemas.events import FeedbackReceived, PredictionMade
from serving.broker import BrokerUnavailable, Outgoing, Publisher, Topics, topic_ids

log = logging.getLogger("ratchet.outbox")

BATCH = 500
TIDY_SECONDS = 1.0

_Item = tuple[Outgoing, "Future[None] | None"]


class OutboxUnavailable(ConnectionError):
    """The event cannot be made safe now."""


class Outbox:
    """The events of one worker on their way to Kafka."""

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
    ) -> None:
        self._bootstrap = bootstrap
        self._topics = topics
        self._write_ahead = write_ahead
        self._stored_positions = stored_positions
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._publisher = Publisher(bootstrap, timeout_s=timeout_s)
        self._incoming: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._topic_ids: dict[str, str] = {}
        self._retry_at = self._tidy_at = 0.0
        self._full = False
        self.published = self.dropped = self.waiting = 0
        self._path, self._lock = _claim(folder)
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Begin to publish, first what an earlier process left."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Publish what can be published within `timeout_s`; the rest stays on disk."""
        self._incoming.put(None)
        self._thread.join(timeout_s)
        self._lock.close()

    def put_prediction(self, event: PredictionMade) -> None:
        """Take an event; never blocks. Past the outbox's bound it is dropped and counted."""
        if self._full:
            self.dropped += 1
            return
        key = event.data.prediction_id.encode()
        self._incoming.put((Outgoing(self._topics.predictions, key, event.model_dump_json().encode()), None))

    def put_feedback(self, event: FeedbackReceived) -> "Future[None]":
        """Take an event; the future is done once it is safe, or fails with OutboxUnavailable."""
        done: Future[None] = Future()
        key = event.data.prediction_id.encode()
        self._incoming.put((Outgoing(self._topics.feedback, key, event.model_dump_json().encode()), done))
        return done

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        disk = self._open()
        running = True
        while running:
            items, running = self._take()
            try:
                if items:
                    self._accept(disk, items)
                self._publish_waiting(disk)
                self._tidy(disk)
            except sqlite3.Error as error:
                log.error("the outbox cannot write: %s", error)
                _refuse(items, f"the outbox cannot write: {error}")
                with contextlib.suppress(sqlite3.Error):
                    disk.rollback()
            except Exception:
                log.exception("the outbox failed on a batch")
                _refuse(items, "the outbox failed")
        self._publisher.close()
        disk.close()

    def _open(self) -> sqlite3.Connection:
        disk = sqlite3.connect(self._path)
        disk.execute("PRAGMA journal_mode=WAL")
        disk.execute("PRAGMA synchronous=FULL")
        disk.execute(
            "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY, topic TEXT NOT NULL, key BLOB NOT NULL,"
            " value BLOB NOT NULL, place TEXT, last INTEGER)"
        )
        disk.commit()
        return disk

    def _take(self) -> tuple[list[_Item], bool]:
        """What has come within a moment; False at the end."""
        items: list[_Item] = []
        try:
            item = self._incoming.get(timeout=0.2)
            while item is not None:
                items.append(item)
                if len(items) >= BATCH:
                    return items, True
                item = self._incoming.get_nowait()
        except queue.Empty:
            return items, True
        return items, False

    def _accept(self, disk: sqlite3.Connection, items: list[_Item]) -> None:
        if self._write_ahead:
            self._write(disk, [message for message, _ in items])
            _confirm(items)
            return
        feedback = [item for item in items if item[1] is not None]
        try:
            self._send([message for message, _ in items])
        except BrokerUnavailable as error:
            self._write(disk, [message for message, done in items if done is None])
            _refuse(feedback, str(error))
        else:
            self.published += len(items)
            _confirm(feedback)

    def _write(self, disk: sqlite3.Connection, messages: list[Outgoing]) -> None:
        rows = [(m.topic, m.key, m.value) for m in messages]
        disk.executemany("INSERT INTO events (topic, key, value) VALUES (?, ?, ?)", rows)
        disk.commit()

    def _send(self, messages: list[Outgoing]) -> list[tuple[str, int]]:
        """Publish, unless the broker was away a moment ago; '<topic_id>/<partition>' and offset of each."""
        if time.monotonic() < self._retry_at:
            raise BrokerUnavailable(f"broker {self._bootstrap} was away a moment ago")
        try:
            if not self._topic_ids:
                self._topic_ids = topic_ids(self._bootstrap, self._topics.names(), timeout_s=self._timeout_s)
            wanted = {m.topic for m in messages}
            if not wanted <= self._topic_ids.keys():
                self._topic_ids = {}
                raise BrokerUnavailable(f"broker {self._bootstrap} has no topic {sorted(wanted)}")
            positions = self._publisher.publish_many(messages)
        except BrokerUnavailable:
            self._topic_ids = {}
            self._retry_at = time.monotonic() + 0.5
            raise
        return [(f"{self._topic_ids[p.topic]}/{p.partition}", p.offset) for p in positions]

    def _publish_waiting(self, disk: sqlite3.Connection) -> None:
        query = "SELECT sequence, topic, key, value FROM events WHERE place IS NULL ORDER BY sequence LIMIT ?"
        while rows := disk.execute(query, (BATCH,)).fetchall():
            try:
                places = self._send([Outgoing(topic, key, value) for _, topic, key, value in rows])
            except BrokerUnavailable as error:
                log.warning("%d events wait on disk: %s", len(rows), error)
                return
            self.published += len(rows)
            if self._write_ahead:
                placed = [(place, last, row[0]) for (place, last), row in zip(places, rows, strict=True)]
                disk.executemany("UPDATE events SET place = ?, last = ? WHERE sequence = ?", placed)
            else:
                disk.executemany("DELETE FROM events WHERE sequence = ?", [(row[0],) for row in rows])
            disk.commit()

    def _tidy(self, disk: sqlite3.Connection) -> None:
        """Every second: forget what is stored, publish again what a new topic has never seen, look at the size."""
        if time.monotonic() < self._tidy_at:
            return
        self._tidy_at = time.monotonic() + TIDY_SECONDS
        if self._write_ahead:
            with contextlib.suppress(ConnectionError):
                for place, last in self._stored_positions().items():
                    disk.execute("DELETE FROM events WHERE place = ? AND last <= ?", (place, last))
                disk.commit()
                self._republish_lost(disk)
        self.waiting = disk.execute("SELECT count(*) FROM events").fetchone()[0]
        pages = disk.execute("PRAGMA page_count").fetchone()[0] - disk.execute("PRAGMA freelist_count").fetchone()[0]
        self._full = pages * disk.execute("PRAGMA page_size").fetchone()[0] > self._max_bytes

    def _republish_lost(self, disk: sqlite3.Connection) -> None:
        if not disk.execute("SELECT 1 FROM events WHERE place IS NOT NULL LIMIT 1").fetchone():
            return
        self._topic_ids = topic_ids(self._bootstrap, self._topics.names(), timeout_s=self._timeout_s)
        known = list(self._topic_ids.values())
        if len(known) == len(self._topics.names()):
            gone = " AND ".join("place NOT LIKE ?" for _ in known)
            disk.execute(f"UPDATE events SET place = NULL WHERE {gone}", [f"{i}/%" for i in known])  # noqa: S608
            disk.commit()


def _claim(folder: Path) -> tuple[Path, IO[bytes]]:
    """The lowest-numbered outbox that no living process holds: a restarted worker goes on with its file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        lock = (folder / f"outbox-{number}.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            return folder / f"outbox-{number}.db", lock
    raise OutboxUnavailable(f"{folder}: every outbox is taken")


def _confirm(items: list[_Item]) -> None:
    for _, done in items:
        if done is not None and not done.cancelled():
            done.set_result(None)


def _refuse(items: list[_Item], reason: str) -> None:
    for _, done in items:
        if done is not None and not done.done():
            done.set_exception(OutboxUnavailable(reason))
