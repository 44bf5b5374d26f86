"""The sending half of an outbox: publishes the events on disk, and deletes them when they are safe elsewhere.

Turns rows of outbox_disk.py into published messages, in a thread of its own. outbox.py starts it and writes the rows.

A Kafka cluster with `acks=all` keeps what it has confirmed, so a confirmed event is deleted. While the cluster does not answer,
the producer goes on by itself with the sequence numbers that it has given out, so that a message whose confirmation was lost
is not stored twice. The embedded broker loses everything when it stops. Its events stay until the event log's position has
passed them, and are published again under the same id when their topic's id changes.
"""

import enum
import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from schemas.cloudevents import headers_of
from serving.messaging import outbox_store
from serving.messaging.causes import Right
from serving.messaging.connection import Broker, BrokerUnavailable, explained
from serving.messaging.outbox_disk import Connection, OutboxDisk
from serving.messaging.publisher import Delivery, MessageTooLarge, Outgoing, Position, Publisher, Topics, topic_ids

log = logging.getLogger("ratchet.outbox")

BATCH = 500
IDLE_SECONDS, TIDY_SECONDS = 0.2, 1.0
RETRY_SECONDS, ADOPT_SECONDS = 0.5, 10.0
REPEAT_SECONDS = 30.0  # before the same error is logged again

_Waiting = list[tuple[int, str, bytes, bytes]]  # sequence, topic, key, value


class Keep(enum.Enum):
    """How long the outbox keeps an event."""

    UNTIL_STORED = "until the event log has stored it: the embedded broker, which forgets"
    UNTIL_CONFIRMED = "until all in-sync replicas have it: Apache Kafka"
    NOTHING = "no event, but predictions while the broker is away: a container without a lasting disk"


class Sender:
    """Publishes the events of one outbox. Its thread calls `run`; the other methods may be called from any thread.

    `published`, `dropped` (larger than the topic allows) and `waiting` (on disk) count events. `full` says that the outbox holds
    more than `max_bytes`, `away` that the broker did not answer last time. About once a second `observe()` is called.
    """

    def __init__(
        self,
        disk: OutboxDisk,
        *,
        broker: Broker,
        topics: Topics,
        keep: Keep,
        stored_positions: Callable[[], dict[str, int]],
        max_bytes: int,
        timeout_s: float,
        observe: Callable[[], None],
    ) -> None:
        self._disk, self._broker, self._keep = disk, broker, keep
        self._published_to = (topics.predictions, topics.feedback)
        self._stored_positions, self._max_bytes, self._timeout_s = stored_positions, max_bytes, timeout_s
        self._observe = observe
        self._topic_ids: dict[str, str] = {}
        self._checked_ids: dict[str, str] = {}  # topic ids with which the events on disk were last compared
        self._retry_at = self._tidy_at = self._adopt_at = 0.0
        self._give_up_at = float("inf")
        self._wake, self._ending = threading.Event(), threading.Event()
        self._underway: tuple[_Waiting, Delivery] | None = None
        self._unrecorded: list[tuple[str, list[tuple[object, ...]]]] = []  # SQL and rows of what was published
        self._last_error, self._era = ("", 0.0), 0
        self._refused_until = 0  # the last sequence among events that were refused for their batch's size
        self.published = self.dropped = self.waiting = 0
        self.full = self.away = False

    def wake(self) -> None:
        """Publish now: there are new events."""
        self._wake.set()

    def end(self) -> None:
        """Publish what is on disk, then let `run` return."""
        self._ending.set()
        self._wake.set()

    def give_up_in(self, seconds: float) -> None:
        """Publish nothing more after this time."""
        self._give_up_at = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Return the seconds until the sender gives up."""
        return max(0.0, self._give_up_at - time.monotonic())

    def log_error(self, line: str) -> None:
        """Log a line, unless it is the last one and that was less than REPEAT_SECONDS ago: both threads retry often."""
        last, at = self._last_error
        if line != last or time.monotonic() - at > REPEAT_SECONDS:
            self._last_error = (line, time.monotonic())
            log.error("%s", line)

    def run(self) -> None:
        """Publish until `end`, whatever fails."""
        disk = Connection(self._disk, "NORMAL")  # a lost commit only means that events are published again
        patient = self._keep is Keep.UNTIL_CONFIRMED
        publisher = Publisher(self._broker, timeout_s=self._timeout_s, patient=patient)
        running = True
        while running:
            self._wake.wait(IDLE_SECONDS)
            self._wake.clear()
            running = not self._ending.is_set()
            try:
                self._adopt(disk)
                connection = disk.get()
                if self._era != self._disk.era:  # the file was replaced: its events have other numbers
                    self._era, self._unrecorded, self._underway, self._checked_ids = self._disk.era, [], None, {}
                    self._refused_until = 0
                self._record_published(connection)
                self._publish_waiting(disk.get(), publisher)
                self._tidy(disk.get())
            except BrokerUnavailable as error:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                self._topic_ids = {}
                if not self.away:
                    log.warning("events wait on disk: %s", error)
                self.away = True
            except Exception as error:
                if isinstance(error, sqlite3.Error | OSError) and not isinstance(error, ConnectionError):
                    disk.failed(error)
                self.log_error(f"the outbox cannot publish: {type(error).__name__}: {error}; it tries again")
                self._retry_at = time.monotonic() + RETRY_SECONDS
        publisher.close()
        disk.close()

    def _publish_waiting(self, disk: sqlite3.Connection, publisher: Publisher) -> None:
        """Publish in order the events that have not been published. Raises BrokerUnavailable."""
        while self._retry_at < time.monotonic() < self._give_up_at:
            if self._underway is None:
                rows = self._unpublished(disk)
                if not rows and not self.away:
                    return
                self._look_up_topics()
                messages = [Outgoing(topic, key, value, headers_of(value)) for _, topic, key, value in rows]
                self._underway = rows, publisher.send(messages)
            rows, delivery = self._underway
            if not delivery.wait(min(self._timeout_s, self.seconds_left())):
                if not publisher.patient:
                    self._underway = None
                    publisher.close()
                raise BrokerUnavailable(f"broker {self._broker}: not confirmed within {self._timeout_s:g} s")
            self.away, self._underway = False, None
            failure = self._settle(rows, delivery)
            self._record_published(disk)
            if failure is not None:
                publisher.close()
            if failure is not None and not isinstance(failure, MessageTooLarge):
                raise explained(failure, self._broker, Right("Write", self._published_to))

    def _unpublished(self, disk: sqlite3.Connection) -> _Waiting:
        """Return the oldest events; one alone while there is one among them that its topic may not take."""
        rows = outbox_store.unpublished(disk, self._published_to, 1 if self._refused_until else BATCH)
        if self._refused_until and (not rows or rows[0][0] > self._refused_until):
            self._refused_until = 0
        return rows

    def _look_up_topics(self) -> None:
        """Read the topics' ids before publishing: no event may carry the id of a topic created after it was sent."""
        if not self._topic_ids:
            ids = topic_ids(self._broker, self._published_to, timeout_s=self._timeout_s)
            if missing := sorted(set(self._published_to) - ids.keys()):
                raise BrokerUnavailable(f"broker {self._broker} has no topic {', '.join(missing)}")
            self._topic_ids = ids

    def _settle(self, rows: _Waiting, delivery: Delivery) -> Exception | None:
        """Note what became of each event; return an error after which the producer is of no use."""
        placed: list[tuple[object, ...]] = []
        done: list[tuple[object, ...]] = []
        failure: Exception | None = None
        for (sequence, topic, _, value), outcome in zip(rows, delivery.outcomes(), strict=True):
            if isinstance(outcome, Position):
                self.published += 1
                if self._keep is Keep.UNTIL_STORED:
                    placed.append((f"{self._topic_ids[topic]}/{outcome.partition}", outcome.offset, sequence))
                else:
                    done.append((sequence,))
            elif not isinstance(outcome, MessageTooLarge):
                failure = outcome
            elif len(rows) > 1:
                # kafka-python fails all that it holds with the error of one: send each of them alone.
                self._refused_until, failure = sequence, failure or outcome
            else:
                failure = outcome
                self.dropped += 1
                done.append((sequence,))
                self.log_error(f"an event of {len(value)} bytes is dropped: {outcome}")
        self._unrecorded += [(outbox_store.RECORD_PUBLISHED, placed), (outbox_store.DELETE, done)]
        return failure

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
        self._observe()
        self.full = outbox_store.used_bytes(disk) > self._max_bytes
        if not outbox_store.any_published(disk):
            return
        stored = self._stored_positions()
        # Compare topic ids before deleting: an event sent just after the broker came back carries the lost topic's id,
        # and would pass for stored.
        self._topic_ids = topic_ids(self._broker, self._published_to, timeout_s=self._timeout_s)
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
