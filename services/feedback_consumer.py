"""The feedback consumer: Kafka in, event log and online store out, every event once.

Turns messages into validated rows, one Delta commit per topic and micro-batch. `ratchet up` starts it; any number may
share the consumer group. It deliberately does not know what feedback is for.

A bad message goes to the dead-letter topic with its original bytes. Anything else that fails (disk, store, broker) is
no message's fault: nothing is committed, and the batch is tried again with growing delay. In between lies a message that
reads well and yet cannot be stored (SUSPECT): it is found by halving, and is a dead letter once it has failed
ATTEMPTS_ALONE times by itself; if many do so in a row the fault is not theirs, and the consumer waits.
"""

import contextlib
import logging
import math
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import click

from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.event_rows import read_event
from pipelines.feature_store.store import FeatureStore
from schemas.events import FeedbackReceived, PredictionMade, utc_now
from schemas.settings import Settings, load_settings
from services.ingestion.crash_points import crash_at
from services.ingestion.dead_letters import letters_of
from services.ingestion.feedback_gate import FeedbackGate
from services.ingestion.feedback_upkeep import Aftercare
from services.ingestion.metrics import ConsumerMetrics
from services.ingestion.micro_batch import MicroBatch, Source, sort_out
from services.ingestion.stored_positions import gone, start_of
from services.supervisor.signals import stop_on
from serving.messaging.consumer import Subscription
from serving.messaging.publisher import BrokerUnavailable, Message, Publisher, Topics, ensure_topics, topic_ids
from serving.process.log_lines import log_to
from serving.process.private_files import keep_private
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.feedback_consumer")

LOOK_SECONDS = 2.0
STALL_SECONDS = 30.0
DRAIN_SECONDS = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 5.0
# What storing can raise because of what a message says; everything else is the machine's doing.
SUSPECT = (ValueError, TypeError, ArithmeticError, LookupError, sqlite3.DataError, sqlite3.InterfaceError)
ATTEMPTS_ALONE = 3
FAILED_IN_A_ROW = 10
_T = TypeVar("_T")


class TopicsRecreated(RuntimeError):
    """A topic has another id than when we subscribed: its offsets begin anew."""


class Stalled(RuntimeError):
    """Messages wait but none arrive, or the group has not let us in: subscribe anew."""


class Unstorable(RuntimeError):
    """So many messages in a row could not be stored that it is not they who are wrong."""


class Consumer:
    """One member of the group. `step` reads and stores one micro-batch."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        features: FeatureStore,
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        read: Callable[[bytes | None, str], PredictionMade | FeedbackReceived] = read_event,
    ) -> None:
        bootstrap = settings.kafka.bootstrap_servers
        if not bootstrap:
            raise ValueError("kafka.bootstrap_servers is not set: start with `ratchet up`, or point it at a broker")
        self._settings = settings
        self._registry = registry
        self._features = features
        self._bootstrap = bootstrap
        self._topics = Topics.of(settings.model.name)
        self._clock = clock
        self._read = read
        self._gate = FeedbackGate(settings, registry)
        self._dead_letters = Publisher(bootstrap, timeout_s=settings.kafka.publish_timeout_s)
        self._subscription: Subscription | None = None
        self._source = Source(self._topics, {})
        self.metrics = ConsumerMetrics(settings.model.name)
        self.aftercare = Aftercare(settings, features, self.metrics, self._dead_letters.publish_many, monotonic)
        self._failed_in_a_row = 0
        self._look_at = self._moved_at = 0.0
        self._assignment = 0
        self._groups_tried = 0
        self._pending: list[Message] = []

    def step(self, seconds: float) -> int:
        """Poll for up to `seconds`, store what came, return how many messages. Raises when nothing could be stored."""
        subscription = self._subscribed()
        deadline = time.monotonic() + seconds
        while len(self._pending) < self._settings.feature_store.batch_rows and time.monotonic() < deadline:
            polled = subscription.poll(max(0.0, min(0.2, deadline - time.monotonic())))
            if subscription.assignments != self._assignment:
                self._assignment, self._pending = subscription.assignments, []
                self.aftercare.forget()
            self._pending += polled
        if self.ready:
            self.aftercare.look(self._source, subscription.partitions(self._topics.feedback), self._clock())
        if not self._pending:
            return 0
        crash_at("after_poll")
        self._moved_at = time.monotonic()
        self.store(self._pending)
        subscription.commit({(m.topic, m.partition): m.offset for m in self._pending})
        crash_at("after_hint")
        done, self._pending = len(self._pending), []
        return done

    def store(self, messages: Sequence[Message]) -> None:
        """Store a micro-batch, the rows and positions of a topic in one commit; now and then compact."""
        with self.metrics.seconds.time():
            self._store_around(messages)
            self._compact()

    @property
    def ready(self) -> bool:
        """Whether the group has given us our share."""
        return self._subscription is not None and self._subscription.assignments > 0

    def drained(self) -> bool:
        """Whether everything in our share is stored. Raises BrokerUnavailable."""
        return self._subscription is not None and self.ready and not self._pending and self._subscription.lag() == 0

    def look_for_gaps(self) -> None:
        """Say, as it starts, which stored rows of topics that are no more the log has lost. Never fails."""
        timeout_s = self._settings.kafka.publish_timeout_s
        with contextlib.suppress(ConnectionError):
            current = set(topic_ids(self._bootstrap, self._topics.names(), timeout_s=timeout_s).values())
            for sentence in gone(self._registry, self._features.log, current):
                log.error("the event log cannot give back %s: restore a backup of it", sentence)

    def reset(self) -> None:
        """Drop connections and what was polled but not stored; the next step begins where the log ends."""
        self._pending, self._assignment = [], 0
        self._dead_letters.close()
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _subscribed(self) -> Subscription:
        """The subscription; every few seconds it must show that the topics are the same and that messages move."""
        if self._subscription is None:
            kafka = self._settings.kafka
            found = ensure_topics(
                self._bootstrap,
                self._topics.names(),
                partitions=kafka.partitions,
                replication_factor=kafka.replication_factor,
                timeout_s=kafka.publish_timeout_s,
            )
            self._source = Source(self._topics, found)
            read = [self._topics.predictions, self._topics.feedback]
            group = f"{self._settings.model.name}.consumer" + f".{self._groups_tried}" * bool(self._groups_tried)
            self._subscription = Subscription(self._bootstrap, read, group=group, start_at=self._start_at)
            self._moved_at = time.monotonic()
        elif time.monotonic() > self._look_at:
            self._check_topics()
            if self.drained():
                self._moved_at = time.monotonic()
            elif time.monotonic() - self._moved_at > STALL_SECONDS:
                # A group that lets nobody in may never do so again. Another one reads the same: what two groups store
                # twice over, the log's positions refuse.
                self._groups_tried += not self.ready
                raise Stalled(f"nothing has come from the broker for {STALL_SECONDS:.0f} s: subscribing anew")
        else:
            return self._subscription
        self._look_at = time.monotonic() + LOOK_SECONDS
        return self._subscription

    def _check_topics(self) -> None:
        timeout_s = self._settings.kafka.publish_timeout_s
        if topic_ids(self._bootstrap, self._topics.names(), timeout_s=timeout_s) != self._source.ids:
            raise TopicsRecreated("the broker's topics were made anew: reading them from their beginning")

    def _start_at(self, topic: str, partition: int) -> int:
        place = self._source.place(topic, partition)
        return start_of(self._registry, self._features.log, self._source.table(topic), place)

    def _store_around(self, messages: Sequence[Message]) -> None:
        """Store messages in order, but for those that cannot be stored by their own fault: they become dead letters."""
        try:
            self._store(messages)
            self._failed_in_a_row = 0
        except SUSPECT as error:
            if len(messages) == 1:
                self._store_alone(messages[0], error)
                return
            log.warning("%d messages cannot be stored together: %s", len(messages), type(error).__name__)
            middle = len(messages) // 2
            self._store_around(messages[:middle])
            self._store_around(messages[middle:])

    def _store_alone(self, message: Message, error: Exception) -> None:
        for attempt in range(1, ATTEMPTS_ALONE):
            time.sleep(FIRST_DELAY * attempt / 2)
            try:
                self._store([message])
            except SUSPECT as again:
                error = again
            else:
                return
        self._failed_in_a_row += 1
        if self._failed_in_a_row > FAILED_IN_A_ROW:
            raise Unstorable(f"more than {FAILED_IN_A_ROW} messages in a row: {type(error).__name__}")
        self._store([message], refused=f"failed {ATTEMPTS_ALONE} times alone: {type(error).__name__}")

    def _store(self, messages: Sequence[Message], refused: str | None = None) -> None:
        # Topic ids never come back: equal before the first poll and after the last, they are what was polled.
        self._check_topics()
        if self._gate.refresh():
            self.aftercare.forget()  # erased feedback is counted no longer
        batch = sort_out(
            messages,
            self._source,
            self._clock(),
            self._read,
            refused,
            check=self._gate.check,
            excluded=self._gate.excluded,
        )
        crash_at("before_dead_letters")
        if batch.bad:
            log.warning("%d messages to %s", len(batch.bad), self._topics.dead_letters)
            self._dead_letters.publish_many(letters_of(self._topics, batch.bad, self._source.place))
        crash_at("after_dead_letters")
        self._features.write_online(batch.predictions)
        crash_at("after_online")
        stored = self._append("predictions", batch)
        crash_at("between_commits")
        said = self._append("feedback", batch)
        crash_at("after_commits")
        self._registry.record_positions(batch.positions["predictions"] | batch.positions["feedback"])
        crash_at("after_positions")
        self.metrics.count(batch, predictions=stored, feedback=said)
        self.aftercare.take(batch, said)

    def _append(self, name: str, batch: MicroBatch) -> int:
        if not batch.positions[name]:
            return 0
        return self._features.log.append(name, batch.rows[name], batch.positions[name])

    def _compact(self) -> None:
        """Now and then, between batches: what goes wrong here is no message's fault."""
        for name in SCHEMAS:
            if self._features.log.compaction_due(name, self._settings.feature_store.compact_every):
                crash_at("before_compaction")
                self._features.log.compact(name)
                crash_at("after_compaction")


def run(consumer: Consumer, stop: threading.Event, batch_seconds: float) -> None:
    """Store micro-batches until `stop`; then what is still in the topics, for a bounded time. Never fails."""
    delay, said_ready = FIRST_DELAY, False
    drain_until = math.inf
    while time.monotonic() < drain_until:
        if stop.is_set() and drain_until == math.inf:
            drain_until = time.monotonic() + DRAIN_SECONDS
        try:
            stored = consumer.step(batch_seconds)
            if stop.is_set() and not stored and consumer.drained():
                return
        except Exception as error:
            log.warning("%s: %s: trying again in %.1f s", type(error).__name__, error, delay)
            consumer.metrics.failures.inc()
            consumer.reset()
            if stop.is_set() and isinstance(error, BrokerUnavailable):
                return
            time.sleep(FIRST_DELAY) if stop.is_set() else stop.wait(delay)
            delay = min(delay * 2, LONGEST_DELAY)
            continue
        delay = FIRST_DELAY
        if consumer.ready and not said_ready:
            print("ready", flush=True)
            said_ready = True
    log.warning("stopping with messages left in the topics: they are read at the next start")


def opened(make: Callable[[], _T], stop: threading.Event) -> _T:
    """What `make` opens, tried with growing delay until it opens. Raises SystemExit once stopped."""
    delay = FIRST_DELAY
    while not stop.is_set():
        try:
            return make()
        except OSError as error:
            log.warning("%s: trying again in %.1f s", error, delay)
        stop.wait(delay)
        delay = min(delay * 2, LONGEST_DELAY)
    raise SystemExit(0)


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default="ratchet.toml")
def main(config: Path) -> None:
    """Run the feedback consumer until SIGTERM."""
    keep_private()
    log_to(sys.stdout)
    settings = load_settings(config.read_bytes(), os.environ, root=config.parent)
    stop = threading.Event()
    stop_on(stop, signal.SIGTERM, signal.SIGINT)
    registry = Registry(settings.registry_url, settings.model.name)
    consumer = Consumer(settings, registry, opened(lambda: FeatureStore(settings), stop))
    consumer.look_for_gaps()
    if settings.feature_store.metrics_port:
        consumer.metrics.serve(settings.feature_store.metrics_port)
    try:
        run(consumer, stop, settings.feature_store.batch_seconds)
    finally:
        consumer.reset()
        registry.close()


if __name__ == "__main__":
    main()
