"""The feedback consumer: Kafka in, event log and online store out, every event once.

Turns messages into validated rows, one Delta commit per topic and micro-batch. `ratchet up` starts it; any number may
share the consumer group. It deliberately does not know what feedback is for.

A bad message goes to the dead-letter topic with its original bytes. Anything else that fails (disk, store, broker) is
no message's fault: nothing is committed, and the batch is tried again with growing delay.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import click
import pyarrow as pa
from pydantic import ValidationError

from pipelines.event_log import SCHEMAS, ConcurrentCommitError
from pipelines.features import FeatureStore
from schemas.events import FeedbackReceived, PredictionMade, parse_event, utc_now
from schemas.settings import Settings, load_settings
from serving.broker import (
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
DRAIN_SECONDS = 10.0
CRASH_POINTS = ("before_online", "after_online", "between_commits", "after_commits", "after_positions")


class BadMessage(ValueError):
    """A message that no retry would make readable; the text says why."""


class TopicsRecreated(RuntimeError):
    """A topic has another id than when we subscribed: its offsets begin anew."""


def read_message(message: Message, topics: Topics) -> PredictionMade | FeedbackReceived:
    """The event in a message. Raises BadMessage."""
    if message.value is None:
        raise BadMessage("a tombstone where an event belongs")
    try:
        event = parse_event(message.value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadMessage(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    expected = PredictionMade if message.topic == topics.predictions else FeedbackReceived
    if not isinstance(event, expected):
        raise BadMessage(f"{event.type} does not belong on {message.topic}")
    return event


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
        self._look_at = 0.0
        self._pending: list[Message] = []

    def step(self, seconds: float) -> int:
        """Poll for up to `seconds`, store what came, return how many messages. Raises ConnectionError or OSError."""
        self._look()
        assert self._subscription is not None
        deadline = time.monotonic() + seconds
        while len(self._pending) < self._settings.feature_store.batch_rows and time.monotonic() < deadline:
            self._pending += self._subscription.poll(max(0.0, min(0.2, deadline - time.monotonic())))
        if not self._pending:
            return 0
        self._store(self._pending)
        done, self._pending = len(self._pending), []
        return done

    def reset(self) -> None:
        """Drop connections and what was polled but not stored; the next step begins where the log ends."""
        self._pending = []
        self._dead_letters.close()
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _look(self) -> None:
        """Subscribe if we are not, and every few seconds see whether the topics are still the same."""
        if self._subscription is not None and time.monotonic() < self._look_at:
            return
        kafka = self._settings.kafka
        wait = kafka.publish_timeout_s
        names = self._topics.names()
        if self._subscription is None:
            self._topic_ids = ensure_topics(
                self._bootstrap,
                names,
                partitions=kafka.partitions,
                replication_factor=kafka.replication_factor,
                timeout_s=wait,
            )
            read = [self._topics.predictions, self._topics.feedback]
            group = f"{self._settings.model.name}.consumer"
            self._subscription = Subscription(self._bootstrap, read, group=group, start_at=self._start_at)
        elif topic_ids(self._bootstrap, names, timeout_s=wait) != self._topic_ids:
            raise TopicsRecreated("the broker's topics were made anew: reading them from their beginning")
        self._look_at = time.monotonic() + LOOK_SECONDS

    def _start_at(self, topic: str, partition: int) -> int:
        return self._features.log.position(self._table(topic), f"{self._topic_ids[topic]}/{partition}") + 1

    def _table(self, topic: str) -> str:
        return "predictions" if topic == self._topics.predictions else "feedback"

    def _store(self, messages: Sequence[Message]) -> None:
        good: list[tuple[Message, PredictionMade | FeedbackReceived]] = []
        bad: list[Outgoing] = []
        for message in messages:
            try:
                good.append((message, read_message(message, self._topics)))
            except BadMessage as error:
                bad.append(self._dead_letter(message, str(error)))
        if bad:
            log.warning("%d messages to %s", len(bad), self._topics.dead_letters)
            self._dead_letters.publish_many(bad)
        _crash_at("before_online")
        self._features.write_online([event for _, event in good if isinstance(event, PredictionMade)])
        _crash_at("after_online")
        predictions = [self._row(m, e) | _prediction_row(e) for m, e in good if isinstance(e, PredictionMade)]
        feedback = [self._row(m, e) | _feedback_row(e) for m, e in good if isinstance(e, FeedbackReceived)]
        for name, rows in (("predictions", predictions), ("feedback", feedback)):
            if rows:
                self._features.log.append(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]))
                self._features.log.compact_if_due(name, self._settings.feature_store.compact_every)
            _crash_at("between_commits" if name == "predictions" else "after_commits")
        last = {(m.topic, m.partition): m.offset for m in messages}
        self._registry.record_positions({f"{self._topic_ids[t]}/{p}": offset for (t, p), offset in last.items()})
        _crash_at("after_positions")
        assert self._subscription is not None
        self._subscription.commit(last)

    def _row(self, message: Message, event: PredictionMade | FeedbackReceived) -> dict[str, object]:
        return {
            "topic_id": self._topic_ids[message.topic],
            "partition": message.partition,
            "offset": message.offset,
            "event_timestamp": event.time,
            "created_timestamp": utc_now(),
        }

    def _dead_letter(self, message: Message, reason: str) -> Outgoing:
        where = {"topic": message.topic, "partition": message.partition, "offset": message.offset, "reason": reason}
        headers = [*message.headers, *((f"ratchet-{k}", str(v).encode()) for k, v in where.items())]
        return Outgoing(self._topics.dead_letters, message.key or b"", message.value or b"", tuple(headers))


def _prediction_row(event: PredictionMade) -> dict[str, object]:
    data = event.data
    return {
        "prediction_id": data.prediction_id,
        "model_version": data.model_version,
        "generation": data.generation,
        "text": data.text,
        "predicted_label": data.label,
        "confidence": data.confidence,
        "probabilities": json.dumps(data.probabilities),
        "user": data.user,
        "metadata": json.dumps(data.metadata),
        "audit": data.audit,
    }


def _feedback_row(event: FeedbackReceived) -> dict[str, object]:
    data = event.data
    return {
        "feedback_id": data.feedback_id,
        "prediction_id": data.prediction_id,
        "kind": data.kind,
        "value": json.dumps(data.value),
        "user": data.user,
    }


def _crash_at(point: str) -> None:
    """Where the tests pull the plug."""
    if os.environ.get("RATCHET_CRASH_AT") == point:
        os.kill(os.getpid(), signal.SIGKILL)


def run(consumer: Consumer, stop: threading.Event, batch_seconds: float) -> None:
    """Store micro-batches until `stop`; then what is still in the topics, for a bounded time."""
    delay, ready = 0.5, False
    drain_until: float | None = None
    while True:
        if stop.is_set() and drain_until is None:
            drain_until = time.monotonic() + DRAIN_SECONDS
        if drain_until is not None and time.monotonic() > drain_until:
            return
        try:
            stored = consumer.step(batch_seconds)
        except (OSError, RuntimeError, pa.ArrowException, ConcurrentCommitError) as error:
            level = logging.INFO if isinstance(error, TopicsRecreated) else logging.WARNING
            log.log(level, "%s: trying again in %.1f s", error, delay)
            consumer.reset()
            if drain_until is not None and isinstance(error, BrokerUnavailable):
                return
            stop.wait(delay) if drain_until is None else time.sleep(0.2)
            delay = min(delay * 2, 10.0)
            continue
        delay = 0.5
        if not ready:
            print("ready", flush=True)
            ready = True
        if drain_until is not None and not stored:
            return


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
    consumer = Consumer(settings, registry, FeatureStore(settings))
    try:
        run(consumer, stop, settings.feature_store.batch_seconds)
    finally:
        consumer.reset()
        registry.close()


if __name__ == "__main__":
    main()
