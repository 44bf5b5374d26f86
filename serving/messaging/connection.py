"""Connections to Kafka: which cluster, and clients that leave nothing behind when it does not answer.

Turns a `Broker` into kafka-python's clients and every error of theirs into `BrokerUnavailable` with its cause. Publisher,
consumer and outbox connect through it. It knows no topic.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kafka import codec
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.net.compat import KafkaNetClient

from schemas.settings import Settings
from serving.messaging import causes
from serving.messaging.causes import Right
from serving.messaging.probe import Refused, Unreachable, accepts, examine
from serving.messaging.security import BadSecurity, Security

logging.getLogger("kafka").setLevel(logging.CRITICAL)  # `reaching` reports its errors

PROBE_SECONDS = 4.0
_worked: dict["Broker", str] = {}  # the address at which this process last connected to a broker


class BrokerUnavailable(ConnectionError):
    """The broker did not answer, or did not confirm, in time."""


class BrokerRefused(BrokerUnavailable):
    """The broker will not do this, however often it is asked: settings or rights must change."""


@dataclass(frozen=True)
class Broker:
    """A Kafka cluster, and what every client of it needs to connect."""

    servers: str  # host:port,...
    security: Security = field(default_factory=Security)
    client_id: str = "ratchet"
    compression: str | None = None

    @classmethod
    def of(cls, settings: Settings, servers: str | None = None) -> "Broker":
        """Return the broker of a project; `servers` is the address of its embedded broker.

        Raises:
            ValueError: neither is set, or a secret is missing.

        """
        kafka = settings.kafka
        addresses = kafka.bootstrap_servers or servers
        if not addresses:
            raise ValueError(
                "kafka.bootstrap_servers is not set: start with `ratchet up`, or set it to the address of a broker"
            )
        return cls(
            addresses,
            Security.of(settings, os.environ),
            kafka.client_id or f"ratchet-{settings.model.name}",
            None if kafka.compression == "none" else kafka.compression,
        )

    def __str__(self) -> str:
        return self.servers


@contextlib.contextmanager
def reaching(broker: Broker, right: Right | None = None) -> Iterator[None]:
    """Turn every error of the broker within the block into BrokerUnavailable, with the broker's address and the cause.

    `right`: what the block needs by the broker's access control.
    """
    try:
        yield
    except BrokerUnavailable:
        raise
    except Unreachable as error:
        raise BrokerUnavailable(f"broker {error}") from error
    except Refused as error:
        raise BrokerRefused(f"broker {error}") from error
    except (KafkaError, OSError, TimeoutError) as error:
        raise explained(error, broker, right) from error
    except BadSecurity as error:
        raise BrokerRefused(str(error)) from error


def explained(error: BaseException, broker: Broker, right: Right | None = None) -> BrokerUnavailable:
    """Return an error of kafka-python as BrokerUnavailable, or as BrokerRefused if the right is missing."""
    if cause := causes.of_rights(error, broker.servers, broker.security, right or Right("Describe")):
        return BrokerRefused(f"broker {broker}: {cause}")
    silent = isinstance(error, KafkaTimeoutError) and not any(error.args)
    return BrokerUnavailable(
        f"broker {broker}: {'no answer in time' if silent else str(error) or type(error).__name__}"
    )


def has_codec(name: str) -> bool:
    """Return whether a codec's library is installed; "none" and gzip need none."""
    return name == "none" or bool(getattr(codec, f"has_{name}")())


def connected(make: Callable[..., Any], broker: Broker, **config: Any) -> Any:
    """Return a kafka-python client, or raise without leaving a thread behind. Raises BrokerUnavailable.

    kafka-python retries whatever fails until its timeout and reports no cause, so the first connection, and the first after a
    failure, is examined beforehand. A TLS handshake of kafka-python has no timeout, so with TLS every one is. Its constructors
    leak the network thread when they raise: a process that waits for a broker would accumulate thousands.
    """
    with reaching(broker):
        known = _worked.pop(broker, None)
        address = known if known and not broker.security.tls and accepts(known) else _examined(broker, config)
        try:
            made = _made(make, address, broker.security.options() | {"client_id": broker.client_id} | config)
        except (KafkaError, OSError):
            if address == known:
                _examined(broker, config)  # raises with the cause
            raise
        _worked[broker] = address
        return made


def _examined(broker: Broker, config: dict[str, Any]) -> str:
    seconds = min(PROBE_SECONDS, float(config.get("bootstrap_timeout_ms", 1000 * PROBE_SECONDS)) / 1000)
    return examine(broker.servers, broker.security, broker.client_id, timeout_s=seconds)


def _made(make: Callable[..., Any], address: str, config: dict[str, Any]) -> Any:
    clients: list[Any] = []

    def client(**options: Any) -> Any:
        clients.append(KafkaNetClient(**options))
        return clients[-1]

    try:
        return make(bootstrap_servers=address, kafka_client=client, reconnect_backoff_max_ms=1000, **config)
    except BaseException:
        for leftover in clients:
            leftover.close()
        raise
