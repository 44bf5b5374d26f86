"""The feedback consumer: store every event of Kafka exactly once in the event log and the online store.

Turns messages into validated rows, one Delta commit per topic and micro-batch. `ratchet up` starts it; any number may
share the consumer group.

A message that cannot be read goes to the dead-letter topic with its original bytes; ingestion/isolation.py finds those that
can be read but not stored. After any other failure (disk, store, broker) nothing is committed, and the batch is retried with
growing delay.
"""

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import click

from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.event_rows import read_event
from pipelines.feature_store.store import FeatureStore
from schemas.events import utc_now
from schemas.settings import Settings, load_settings
from services.ingestion.continuity import Continuity
from services.ingestion.dead_letters import letters_of, publish
from services.ingestion.feedback_gate import FeedbackGate
from services.ingestion.feedback_upkeep import FeedbackUpkeep
from services.ingestion.isolation import DEFAULT_LIMITS, Isolation, IsolationLimits
from services.ingestion.metrics import ConsumerMetrics
from services.ingestion.micro_batch import MicroBatch, Read, Source, micro_batch_of
from services.ingestion.progress import STUCK_SECONDS, Progress
from services.ingestion.stored_positions import lost_rows
from services.ingestion.stored_span import stored_span
from services.ingestion.topic_watch import TopicWatch
from services.ingestion.troubles import Counted, Troubles
from services.projects import settings_file
from services.supervisor.signals import FIRST_DELAY, LONGEST_DELAY, opened, stop_on
from serving.messaging.connection import Broker, BrokerUnavailable
from serving.messaging.consumer import NEW_PARTITIONS_S, Subscription
from serving.messaging.publisher import Message, Outgoing, Publisher, Topics, topic_ids
from serving.process.crash_points import crash_at
from serving.process.log_lines import log_to
from serving.process.private_files import keep_private
from serving.process.tracing import start_tracing, stop_tracing
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.feedback_consumer")

LOOK_SECONDS = 2.0
STALL_SECONDS = 30.0
DRAIN_SECONDS = 10.0
NICE = 5  # answers come before storing; at 10 the consumer falls behind a busy server (docs/lab-notes.md)


class Stalled(RuntimeError):
    """The broker holds messages but delivers none, or the group assigns no partitions: subscribe again."""


class Consumer:
    """One member of the consumer group; `step` reads and stores one micro-batch."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        features: FeatureStore,
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        read: Read = read_event,
        isolation: IsolationLimits = DEFAULT_LIMITS,
        stuck_after_s: float = STUCK_SECONDS,
        new_partitions_s: float = NEW_PARTITIONS_S,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._features = features
        self._broker = Broker.of(settings)
        self._topics = Topics.of(settings.stream_name)
        self._clock = clock
        self._read = read
        self._gate = FeedbackGate(settings, registry)
        self._dead_letters = Publisher(self._broker, timeout_s=settings.kafka.publish_timeout_s)
        self._subscription: Subscription | None = None
        self._source = Source(self._topics, {})
        self.metrics = ConsumerMetrics(settings.model.name)
        self._troubles = Troubles(registry, self.metrics)
        self.upkeep = FeedbackUpkeep(settings, features, self.metrics, self._set_aside, monotonic)
        self.progress = Progress(self._troubles, self.metrics, self._next, stuck_after_s=stuck_after_s)
        self._topic_watch = TopicWatch(settings, self._broker, self._topics, registry, self._troubles)
        self._continuity = Continuity(registry, features.log, self._troubles)
        self._isolation = Isolation(self._store, isolation)
        self._new_partitions_s = new_partitions_s
        self._look_at = self._moved_at = 0.0
        self._assignment = self._groups_tried = 0
        self._pending: list[Message] = []

    def step(self, seconds: float) -> int:
        """Poll for up to `seconds`, store the messages and return their number. Raises if the batch cannot be stored."""
        subscription = self._subscribed()
        deadline = time.monotonic() + seconds
        while len(self._pending) < self._settings.feature_store.batch_rows and time.monotonic() < deadline:
            polled = subscription.poll(max(0.0, min(0.2, deadline - time.monotonic())))
            if subscription.assignments != self._assignment:
                self._assignment, self._pending = subscription.assignments, []
                self.upkeep.recount()
            self._pending += self._continuity.beyond_stored(self._source, polled)
        if self.ready:
            self.upkeep.run_due(self._source, subscription.partitions(self._topics.feedback), self._clock())
        if not self._pending:
            return 0
        crash_at("after_poll")
        self._moved_at = time.monotonic()
        self.store(self._pending)
        self.progress.moved()
        subscription.commit({(m.topic, m.partition): m.offset for m in self._pending})
        crash_at("after_hint")
        done, self._pending = len(self._pending), []
        return done

    def store(self, messages: Sequence[Message]) -> None:
        """Store a micro-batch, the rows and positions of a topic in one commit; compact when due."""
        with self.metrics.seconds.time(), stored_span(messages):
            self._isolation.store(messages)
            self._compact()

    @property
    def ready(self) -> bool:
        """Return whether the group has assigned partitions to this member."""
        return self._subscription is not None and self._subscription.assignments > 0

    def drained(self) -> bool:
        """Return whether every message of the assigned partitions is stored. Raises BrokerUnavailable."""
        return self._subscription is not None and self.ready and not self._pending and self._subscription.lag() == 0

    def log_lost_rows(self) -> None:
        """Log which rows of deleted topics the event log has lost. Ignores an unreachable broker or registry."""
        timeout_s = self._settings.kafka.publish_timeout_s
        with contextlib.suppress(ConnectionError):
            current = set(topic_ids(self._broker, self._topics.names(), timeout_s=timeout_s).values())
            for sentence in lost_rows(self._registry, self._features.log, current):
                log.error("the event log has lost %s: restore a backup of it", sentence)

    def reset(self) -> None:
        """Close connections and drop polled messages that are not stored; the next step reads on from the log's positions."""
        self._pending, self._assignment = [], 0
        self._dead_letters.close()
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _subscribed(self) -> Subscription:
        """Return the subscription; every LOOK_SECONDS check that the topics are the same and that messages arrive."""
        if self._subscription is None:
            self._source = self._topic_watch.begin()
            self._subscription = Subscription(
                self._broker,
                [self._topics.predictions, self._topics.feedback],
                group=self._topics.consumer_group + f".{self._groups_tried}" * bool(self._groups_tried),
                start_at=lambda topic, partition: self._continuity.start_at(self._source, topic, partition),
                out_of_range=lambda gap: self._continuity.out_of_range(self._source, gap),
                new_partitions_s=self._new_partitions_s,
            )
            self._moved_at = time.monotonic()
        elif time.monotonic() > self._look_at:
            self._topic_watch.check()
            lag = self._subscription.lag()
            if lag is not None:
                self.metrics.lag.set(lag + len(self._pending))
            if self.ready and not self._pending and lag == 0:
                self._moved_at = time.monotonic()
                self.progress.moved()
            else:
                self.progress.waits("messages wait, none arrives" if self.ready else "the group assigns no partitions")
            if time.monotonic() - self._moved_at > STALL_SECONDS:
                # A consumer group can hang for good: use a new one. The log's positions reject what both groups store.
                self._groups_tried += not self.ready
                raise Stalled(f"no message came from the broker for {STALL_SECONDS:.0f} s: subscribing again")
        else:
            return self._subscription
        self._look_at = time.monotonic() + LOOK_SECONDS
        return self._subscription

    def _store(self, messages: Sequence[Message], refused: str | None = None) -> None:
        # Topic ids are never reused: if they are equal before the first poll and after the last, the messages carry them.
        self._topic_watch.check()
        if self._gate.refresh():
            self.upkeep.recount()  # without erased feedback
        batch = micro_batch_of(
            messages,
            self._source,
            self._clock(),
            self._read,
            refused,
            check=self._gate.check,
            excluded=self._gate.excluded,
            stored_before=self._continuity.stored_before(self._source, messages),
        )
        crash_at("before_dead_letters")
        noted: list[Counted] = []
        if batch.bad:
            log.warning("%d messages to %s", len(batch.bad), self._topics.dead_letters)
            noted = self._set_aside(letters_of(self._topics, batch.bad, self._source.partition_key))
        crash_at("after_dead_letters")
        self._features.write_online(batch.predictions)
        crash_at("after_online")
        predictions = self._append("predictions", batch)
        crash_at("between_commits")
        feedback = self._append("feedback", batch)
        crash_at("after_commits")
        self._registry.record_positions(batch.positions["predictions"] | batch.positions["feedback"])
        crash_at("after_positions")
        self._troubles.count_all(noted)  # after the commit: a batch that is tried again counts once
        self.metrics.count(batch, predictions=predictions, feedback=feedback)
        self.upkeep.take(batch, feedback)

    def _set_aside(self, letters: Sequence[Outgoing]) -> list[Counted]:
        return publish(letters, self._dead_letters)

    def _next(self) -> dict[str, int]:
        """Return '<topic>/<partition>' -> the offset that is stored next."""
        first = {f"{m.topic}/{m.partition}": m.offset for m in reversed(self._pending)}
        return first or (self._subscription.positions() if self._subscription else {})

    def _append(self, name: str, batch: MicroBatch) -> int:
        if not batch.positions[name]:
            return 0
        return self._features.log.append(name, batch.rows[name], batch.positions[name])

    def _compact(self) -> None:
        for name in SCHEMAS:
            if self._features.log.compaction_due(name, self._settings.feature_store.compact_every):
                crash_at("before_compaction")
                self._features.log.compact(name)
                crash_at("after_compaction")


def run(consumer: Consumer, stop: threading.Event, batch_seconds: float, *, drain_s: float = DRAIN_SECONDS) -> None:
    """Store micro-batches until `stop` is set, then drain the topics for `drain_s` seconds at most. Never raises."""
    delay, reported = FIRST_DELAY, False
    drain_until = math.inf
    while time.monotonic() < drain_until:
        if stop.is_set() and drain_until == math.inf:
            drain_until = time.monotonic() + drain_s
        try:
            stored = consumer.step(batch_seconds)
            if stop.is_set() and not stored and consumer.drained():
                return
        except Exception as error:
            log.warning("%s: %s: trying again in %.1f s", type(error).__name__, error, delay)
            consumer.metrics.failures.inc()
            consumer.progress.failed(f"{type(error).__name__}: {error}")
            consumer.reset()
            if stop.is_set() and isinstance(error, BrokerUnavailable):
                return
            time.sleep(FIRST_DELAY) if stop.is_set() else stop.wait(delay)
            delay = min(delay * 2, LONGEST_DELAY)
            continue
        delay = FIRST_DELAY
        if consumer.ready and not reported:
            print("ready", flush=True)
            reported = True
    log.warning("stopping with messages left in the topics: they are read at the next start")


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default="ratchet.toml", help="settings file")
def main(config: Path) -> None:
    """Run the feedback consumer until SIGTERM."""
    config = settings_file(config)
    keep_private()
    log_to(sys.stdout)
    settings = load_settings(config.read_bytes(), os.environ, root=config.parent)
    log_to(sys.stdout, log_format=settings.observability.log_format)
    stop = threading.Event()
    stop_on(stop, signal.SIGTERM, signal.SIGINT)
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    registry = Registry(settings.registry_url, settings.model.name)
    consumer = Consumer(settings, registry, opened(lambda: FeatureStore(settings), stop))
    consumer.log_lost_rows()
    consumer.metrics.serve(settings)
    start_tracing(settings.observability, service="consumer", model=settings.model.name)
    try:
        run(consumer, stop, settings.feature_store.batch_seconds)
    finally:
        consumer.reset()
        consumer.progress.ended()
        stop_tracing()
        registry.close()


if __name__ == "__main__":
    main()
