"""What tests need of a broker beyond Ratchet's own door: a process that can be killed, and everything in a topic."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from serving.messaging.connection import Broker
from serving.messaging.publisher import embedded_broker_command, topic_ids
from tests.support.fakes import free_port, wait_until

AT_ONCE_S, TRIES = 5.0, 3


@dataclass
class BrokerProcess:
    """An embedded broker on a port of its own; killed and started again, it has forgotten everything."""

    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(embedded_broker_command(self.port), stdout=quiet, stderr=quiet)
        wait_until(self.answers)

    def answers(self) -> bool:
        try:
            topic_ids(Broker(self.address), ["any"], timeout_s=5)
        except ConnectionError:
            return False
        return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@contextmanager
def own_broker(*, running: bool = True) -> Iterator[BrokerProcess]:
    """A broker for one test alone."""
    broker = BrokerProcess()
    if running:
        broker.start()
    try:
        yield broker
    finally:
        broker.kill()


def read_all(bootstrap: str, topic: str) -> list[Any]:
    """Every message that is in a topic now, in order per partition, without a group."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", bootstrap_timeout_ms=5000, fetch_max_wait_ms=100
    )
    found: list[Any] = []
    try:
        places = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)

        def complete() -> bool:
            polled = [record for records in consumer.poll(timeout_ms=300).values() for record in records]
            found.extend(polled)
            return not polled and all(consumer.highwater(p) == consumer.position(p) for p in places)

        wait_until(complete, every_s=0)
    finally:
        consumer.close(autocommit=False)
    return found


def failure_at_once(
    attempt: Callable[[], object], *kinds: type[Exception], ended: Callable[[], float] = time.monotonic
) -> str:
    """The line of an attempt's failure, which came within AT_ONCE_S in one of TRIES: a busy machine delays one, a wait all.

    `ended` returns when the failure was known, in monotonic seconds.
    """
    seconds: list[float] = []
    while True:
        started = time.monotonic()
        with pytest.raises(kinds) as caught:
            attempt()
        seconds.append(ended() - started)
        if seconds[-1] < AT_ONCE_S:
            return str(caught.value).strip()
        assert len(seconds) < TRIES, f"{attempt}: {seconds}: {caught.value}"
