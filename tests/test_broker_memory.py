"""The embedded broker is restarted before its memory fills the machine, and nothing that exists only there is lost."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.settings import Settings
from services.supervisor import broker_memory
from services.supervisor.broker_memory import APART_S, BrokerMemory, resident_bytes
from services.supervisor.children import Child
from serving.messaging import outbox_store
from serving.messaging.connection import Broker, BrokerUnavailable
from serving.messaging.consumer import Backlog
from serving.messaging.project_topics import make_topics
from serving.messaging.publisher import (
    Outgoing,
    Publisher,
    Topics,
    embedded_broker_command,
    topic_ids,
)
from tests.support.fakes import free_port, wait_until
from tests.support.kafka_tools import read_all

TOPICS = Topics.of("model")
LIMIT_MB = 100


class Watched:
    """An embedded broker under `BrokerMemory`, whose size and clock the test sets."""

    def __init__(self, root: Path) -> None:
        self.now, self.megabytes = 1000.0, 0.0
        port = free_port()
        self.broker = Broker(f"127.0.0.1:{port}")
        self.child = Child(
            "broker",
            embedded_broker_command(port),
            environment=dict(os.environ),
            logs=root / "logs",
            mark=f"{root}:broker",
        )
        self.child.start()
        settings = Settings(root=root, kafka={"broker_memory_mb": LIMIT_MB})
        self.outbox = settings.path(settings.serving.outbox) / "outbox-0.db"
        self.settings = settings
        self.memory = BrokerMemory(
            self.child,
            self.broker,
            settings,
            resident=lambda _: int(self.megabytes * 1e6),
            clock=lambda: self.now,
        )

    def make_topics(self) -> dict[str, str]:
        return make_topics(self.settings, self.broker)

    def topics_made(self) -> bool:
        try:
            return bool(self.make_topics())
        except BrokerUnavailable:
            return False

    def publish(self, *messages: Outgoing) -> None:
        publisher = Publisher(self.broker, timeout_s=30)
        publisher.publish_many(messages)
        publisher.close()

    def commit(self, topic: str) -> None:
        with Backlog(self.broker, topic, reader=TOPICS.consumer_group) as backlog:
            for batch in backlog.batches():
                backlog.done(batch)

    def look(self, megabytes: float = 0.0, seconds: float = APART_S) -> list[str]:
        self.now += seconds
        self.megabytes = megabytes
        return self.memory.watch()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    broker = Watched(tmp_path)
    try:
        wait_until(broker.topics_made)
        yield broker
    finally:
        broker.child.stop(0)


def test_a_restart_keeps_the_dead_letters_that_were_not_replayed(watched: Watched) -> None:
    letters = [Outgoing(TOPICS.dead_letters, b"k", b"%d" % n, (("ratchet-reason", b"odd"),)) for n in range(700)]
    watched.publish(letters[0])
    with Backlog(watched.broker, TOPICS.dead_letters, reader=f"{TOPICS.dead_letters}.replay") as backlog:
        for batch in backlog.batches():
            backlog.done(batch)  # replayed
    watched.publish(*letters[1:])
    before, pid = watched.make_topics(), watched.child.pid
    assert watched.look(LIMIT_MB - 1) == []
    assert watched.look(LIMIT_MB) == [
        "used 100 MB of memory (kafka.broker_memory_mb = 100): restarted; 699 dead letters are kept"
    ]
    assert (watched.child.pid != pid, watched.child.deaths, watched.child.trouble) == (True, 0, None)

    def restored() -> bool:
        watched.look(seconds=1)
        try:
            return topic_ids(watched.broker, TOPICS.names(), timeout_s=5).keys() == set(TOPICS.names())
        except BrokerUnavailable:
            return False

    wait_until(restored)
    assert not set(watched.make_topics().values()) & set(before.values())
    kept = read_all(watched.broker.servers, TOPICS.dead_letters)
    assert sorted(int(record.value) for record in kept) == list(range(1, 700))
    assert {tuple(record.headers) for record in kept} == {(("ratchet-reason", b"odd"),)}


def test_it_waits_for_a_moment_at_which_everything_is_stored_but_not_for_ever(watched: Watched) -> None:
    watched.publish(Outgoing(TOPICS.feedback, b"k", b"a replayed dead letter: in no outbox"))
    assert watched.look(LIMIT_MB) == [], "the consumer has not stored it"
    watched.commit(TOPICS.feedback)
    watched.outbox.parent.mkdir(parents=True)
    disk = outbox_store.open_disk(watched.outbox, "FULL")
    outbox_store.make_table(disk)
    outbox_store.write(disk, [Outgoing(TOPICS.feedback, b"k", b"v")])
    assert watched.look(LIMIT_MB) == [], "an event waits in an outbox"
    many = [Outgoing(TOPICS.feedback, b"k", b"v")] * broker_memory.MANY_WAITING
    outbox_store.write(disk, many)
    assert watched.look(2 * LIMIT_MB) == [], "as many are published again: nothing would be freed"
    disk.execute("DELETE FROM events WHERE sequence > 10")
    disk.commit()
    assert len(watched.look(2 * LIMIT_MB)) == 1
    assert watched.look(2 * LIMIT_MB, seconds=1) == [], "not twice within APART_S"
    disk.execute("DELETE FROM events")
    disk.commit()
    disk.close()
    wait_until(lambda: watched.look(LIMIT_MB) != [])


def test_the_memory_of_a_process_is_read() -> None:
    assert 10**6 < (resident_bytes(os.getpid()) or 0) < 10**11
    assert resident_bytes(None) is None
