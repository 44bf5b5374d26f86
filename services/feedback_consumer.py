"""The feedback consumer: Kafka in, event log and online store out, every event once.

Turns messages into validated rows, one Delta commit per topic and micro-batch. `ratchet up` starts it; any number may
share the consumer group. It deliberately does not know what feedback is for.

A bad message goes to the dead-letter topic with its original bytes. Anything else that fails (disk, store, broker) is
no message's fault: nothing is committed, and the batch is tried again with growing delay.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click
import pyarrow as pa

from pipelines.event_log import SCHEMAS
from pipelines.event_rows import BadMessage, read_event, row_of
from pipelines.features import FeatureStore
from schemas.events import PredictionMade, utc_now
from schemas.settings import Settings, load_settings
from serving.broker import (
    MAX_MESSAGE_BYTES,
    BrokerUnavailable,
    Message,
    Outgoing,
    Publisher,
    Subscription,
    Topics,
    ensure_topics,
    topic_ids,
)
from serving.registry import Registry

log = logging.getLogger("ratchet.feedback_consumer")

LOOK_SECONDS = 2.0
STALL_SECONDS = 30.0
DRAIN_SECONDS = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 5.0
CRASH_POINTS = (
    "before_dead_letters",
    "before_online",
    "after_online",
    "between_commits",
    "after_commits",
    "after_positions",
)

_T = TypeVar("_T")


class TopicsRecreated(RuntimeError):
    """A topic has another id than when we subscribed: its offsets begin anew."""


class Stalled(RuntimeError):
    """Messages wait but none arrive, or the group has not let us in: subscribe anew."""


class Consumer:
    """One member of the group. `step` reads and stores one micro-batch."""

    def __init__(self, settings: Settings, registry: Registry, features: FeatureStore) -> None:
        bootstrap = settings.kafka.bootstrap_servers
        if not bootstrap:
            raise ValueError("kafka.bootstrap_servers is not set: start with `ratchet up`, or point it at a broker")
        self._settings = settings
        self._registry = registry
        self._features = features
        self._bootstrap = bootstrap
        self._topics = Topics.of(settings.model.name)
        self._dead_letters = Publisher(bootstrap, timeout_s=settings.kafka.publish_timeout_s)
        self._subscription: Subscription | None = None
        self._topic_ids: dict[str, str] = {}
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
            self._pending += polled
        if not self._pending:
            return 0
        self._moved_at = time.monotonic()
        self._store(self._pending)
        subscription.commit({(m.topic, m.partition): m.offset for m in self._pending})
        done, self._pending = len(self._pending), []
        return done

    @property
    def ready(self) -> bool:
        """Whether the group has given us our share."""
        return self._subscription is not None and self._subscription.assignments > 0

    def drained(self) -> bool:
        """Whether everything in our share is stored. Raises BrokerUnavailable."""
        return self._subscription is not None and self.ready and not self._pending and self._subscription.lag() == 0

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
            self._topic_ids = ensure_topics(
                self._bootstrap,
                self._topics.names(),
                partitions=kafka.partitions,
                replication_factor=kafka.replication_factor,
                timeout_s=kafka.publish_timeout_s,
            )
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
        if topic_ids(self._bootstrap, self._topics.names(), timeout_s=timeout_s) != self._topic_ids:
            raise TopicsRecreated("the broker's topics were made anew: reading them from their beginning")

    def _start_at(self, topic: str, partition: int) -> int:
        place = f"{self._topic_ids[topic]}/{partition}"
        stored = self._features.log.position(self._table(topic), place)
        if stored >= 0:
            # Whoever stored it may have died before telling the registry, which outboxes ask.
            self._registry.record_positions({place: stored})
        return stored + 1

    def _table(self, topic: str) -> str:
        return "predictions" if topic == self._topics.predictions else "feedback"

    def _store(self, messages: Sequence[Message]) -> None:
        # Topic ids never come back: equal before the first poll and after the last, they are what was polled.
        self._check_topics()
        rows: dict[str, list[dict[str, object]]] = {"predictions": [], "feedback": []}
        positions: dict[str, dict[str, int]] = {"predictions": {}, "feedback": {}}
        predictions: list[PredictionMade] = []
        bad: list[Outgoing] = []
        now = utc_now()
        for message in messages:
            table, topic_id = self._table(message.topic), self._topic_ids[message.topic]
            positions[table][f"{topic_id}/{message.partition}"] = message.offset
            try:
                event = read_event(message.value, table)
                rows[table].append(row_of(event, now, topic_id, message.partition, message.offset))
                if isinstance(event, PredictionMade):
                    predictions.append(event)
            except BadMessage as error:
                bad.append(self._dead_letter(message, str(error)))
        _crash_at("before_dead_letters")
        if bad:
            log.warning("%d messages to %s", len(bad), self._topics.dead_letters)
            self._dead_letters.publish_many(bad)
        _crash_at("before_online")
        self._features.write_online(predictions)
        _crash_at("after_online")
        for name, last in positions.items():
            if last:
                self._features.log.append(name, pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]), last)
                self._features.log.compact_if_due(name, self._settings.feature_store.compact_every)
            _crash_at("between_commits" if name == "predictions" else "after_commits")
        self._registry.record_positions(positions["predictions"] | positions["feedback"])
        _crash_at("after_positions")

    def _dead_letter(self, message: Message, reason: str) -> Outgoing:
        where = {
            "topic": message.topic,
            "position": f"{self._topic_ids[message.topic]}/{message.partition}/{message.offset}",
            "reason": reason,
        }
        headers = [*message.headers, *((f"ratchet-{k}", v.encode()) for k, v in where.items())]
        value = (message.value or b"")[:MAX_MESSAGE_BYTES]
        return Outgoing(self._topics.dead_letters, message.key or b"", value, tuple(headers))


def _crash_at(point: str) -> None:
    """Where the tests pull the plug."""
    if os.environ.get("RATCHET_CRASH_AT") == point:
        os.kill(os.getpid(), signal.SIGKILL)


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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    settings = load_settings(config.read_text(), os.environ, root=config.parent)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    registry = Registry(settings.registry_url, settings.model.name)
    consumer = Consumer(settings, registry, opened(lambda: FeatureStore(settings), stop))
    try:
        run(consumer, stop, settings.feature_store.batch_seconds)
    finally:
        consumer.reset()
        registry.close()


if __name__ == "__main__":
    main()
