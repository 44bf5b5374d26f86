"""What tests need of a broker beyond Ratchet's own door: a process that can be killed, and everything in a topic."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from serving.messaging.publisher import embedded_broker_command, topic_ids
from tests.support.fakes import free_port, wait_until


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
        wait_until(self.answers, timeout_s=15)

    def answers(self) -> bool:
        try:
            topic_ids(self.address, ["any"], timeout_s=5)
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

        wait_until(complete, timeout_s=20, every_s=0)
    finally:
        consumer.close(autocommit=False)
    return found
