"""What strangers and operators do to the topics of a project on Apache Kafka: ingestion goes on, and says what it lost."""

import gzip
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import lz4.frame
import pytest
import snappy
import zstandard
from kafka import KafkaAdminClient, TopicPartition

from schemas.records import IngestionNote
from services.feedback_consumer import Consumer, run
from services.ingestion.troubles import lasting, sentence
from serving.messaging.topic_checks import ForeignTopics, claim, owner, topic_faults
from tests.support.apache_kafka import Cluster, cluster
from tests.support.events import pid
from tests.support.fakes import wait_until
from tests.support.ingesting import Ingesting
from tests.support.raw_batches import batch, record, send

pytestmark = pytest.mark.kafka
Z = zstandard.ZstdCompressor().compress


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("kafka")) as node:
        yield node


@pytest.fixture
def project(tmp_path: Path, kafka: Cluster, model_name: str) -> Iterator[Ingesting]:
    made = Ingesting(tmp_path / "project", kafka.servers, model_name)
    yield made
    made.close()


def write(project: Ingesting, data: bytes) -> int:
    """Send a batch to the feedback topic and return its offset."""
    offsets: list[int] = []

    def sent() -> bool:  # a new topic has no leader for a moment
        error, offset = send(project.address, project.topics.feedback, 0, data)
        assert error in (0, 3, 5, 6), error
        offsets.append(offset)
        return error == 0

    wait_until(sent)
    return offsets[-1]


def test_nothing_that_a_producer_may_write_stops_ingestion(project: Ingesting) -> None:
    project.make_topics()
    good = project.event
    for n, (codec, compress) in enumerate([(1, gzip.compress), (2, snappy.compress), (3, lz4.frame.compress), (4, Z)]):
        write(project, batch(compress(record(good(n))), 1, codec=codec))
    nothing = [(b"gr\xf6\xdfe", b"1"), (b"empty", None)]
    write(project, batch(record(good(4), headers=nothing) + record(b"bad", at=1, headers=nothing), 2))
    bomb = write(project, batch(Z(record(bytes(300 << 20))), 1, codec=4))
    write(project, batch(record(good(5)) + record(b"far", at=1000) + record(good(6), at=2), 3))
    write(project, batch(record(b"x" * 4_000_000, headers=[(b"h", b"y" * 65_100)]), 1))
    write(project, batch(record(b"x", key=b"k" * 4_000_000), 1))
    write(project, batch(record(None, key=None) + record(b"", at=1) + record(good(7), key=None, at=2), 3))
    last = write(project, batch(record(good(8)), 1, timestamp_ms=-5000))
    project.consume(*range(9))
    letters = {int(headers["ratchet-offset"]): (value, headers) for value, headers in project.letters()}
    assert len(letters) == 7
    assert letters[bomb][1]["ratchet-reason"].startswith(b"cannot be decoded: zstd: more than")
    assert letters[5][1]["ratchet-null-headers"] == b"empty" and letters[5][1]["gr\\xf6\\xdfe"] == b"1"
    assert letters[8][1]["ratchet-reason"].startswith(b"cannot be decoded: ")
    assert len(letters[10][0]) == 4_000_000 and letters[10][1]["ratchet-cut"] == b"headers"
    assert letters[11][0] == b"x" and "ratchet-cut" not in letters[11][1]
    assert project.notes()["unreadable"][0] == 2 and project.notes()["dead letters"][0] == 5
    assert project.registry.positions()[next(iter(project.registry.positions()))] == last


def test_a_topic_whose_broker_compresses_is_read(project: Ingesting, kafka: Cluster) -> None:
    kafka.make_topics(project.topics.names(), {"compression.type": "zstd"})
    project.send(1, 2, 3)
    project.consume(1, 2, 3)


def test_a_dead_letter_is_cut_until_its_topic_takes_it(project: Ingesting, kafka: Cluster) -> None:
    kafka.make_topics([project.topics.dead_letters], {"max.message.bytes": "20000"})
    project.make_topics()
    write(project, batch(record(b"x" * 300_000, headers=[(b"h", b"y" * 30_000)]), 1))
    write(project, batch(record(b"small"), 1))
    project.send(1)
    project.consume(1)
    by_offset = {int(headers["ratchet-offset"]): (value, headers) for value, headers in project.letters()}
    value, headers = by_offset[0]
    assert 9_000 < len(value) < 20_000 and headers["ratchet-bytes"] == b"300000"
    assert headers["ratchet-cut"] == b"headers,value" and by_offset[1][0] == b"small"
    assert project.notes()["cut"][0] == 1


def test_what_retention_deleted_before_it_was_stored_is_counted(project: Ingesting) -> None:
    project.make_topics()
    project.send(1, 2)
    project.consume(1, 2)
    project.send(3, 4, 5, 6)
    admin = KafkaAdminClient(bootstrap_servers=project.address)
    admin.delete_records({TopicPartition(project.topics.feedback, 0): 5})
    admin.close()
    project.consume(1, 2, 6)
    assert project.notes()["expired"] == (3, 4, "offsets 2 to 4")
    assert "3 messages of" in str(sentence(project.registry.ingestion()[0].model_dump()))
    project.consume(1, 2, 6)  # another start counts nothing again
    assert project.notes()["expired"][0] == 3


def test_damage_on_the_brokers_disk_and_an_older_copy_of_it(tmp_path: Path, model_name: str) -> None:
    """One node of its own, because it is stopped: a flipped bit in a batch, then a disk from before."""
    with cluster(tmp_path / "kafka") as node:
        project = Ingesting(tmp_path / "project", node.servers, model_name)
        project.make_topics()
        for n in range(3):
            project.send(n)
        segment = next((tmp_path / "kafka").glob(f"**/{project.topics.feedback}-0/*.log"))
        node.stop(1)
        content = bytearray(segment.read_bytes())
        content[content.index(pid(1).encode()) + 3] ^= 1
        segment.write_bytes(content)
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "kafka", copy)
        node.start()
        project.consume(0, 2)
        assert project.notes()["unreadable"][:2] == (1, 1)
        project.send(3, 4, 5, 6)
        project.consume(0, 2, 3, 4, 5, 6)
        node.stop(1)
        shutil.rmtree(tmp_path / "kafka")
        shutil.move(copy, tmp_path / "kafka")
        node.start()
        project.send(7, 8)  # at the offsets of 3 and 4: the log ends before the stored position
        project.consume(0, 2, 3, 4, 5, 6, 7, 8)
        assert "ends at offset 5, before the stored" in project.notes()["rewritten"][2]
        node.stop(1)
        shutil.copytree(tmp_path / "kafka", copy)
        node.start()
        project.send(9, 10)
        project.consume(0, 2, *range(3, 11))
        node.stop(1)
        shutil.rmtree(tmp_path / "kafka")
        shutil.move(copy, tmp_path / "kafka")
        node.start()
        project.send(11, 12, 13)  # beyond the stored position: only its last event shows that it was overwritten
        project.consume(0, 2, *range(3, 14))
        assert project.notes()["rewritten"][0] == 2
        project.close()


def test_two_projects_of_one_name_do_not_divide_the_events(project: Ingesting, tmp_path: Path) -> None:
    project.make_topics()
    project.send(1)
    project.consume(1)
    assert owner(project.broker, project.topics) == project.registry.project_id()
    foreign = Ingesting(tmp_path / "foreign", project.address, project.settings.model.name)
    with pytest.raises(ForeignTopics, match=r"belong to another project.*delete the consumer group .*\.owner"):
        claim(foreign.broker, foreign.topics, foreign.registry.project_id())
    refused = Consumer(foreign.settings, foreign.registry, foreign.features)
    with pytest.raises(ForeignTopics):
        refused.step(0.1)
    refused.reset()
    shutil.move(tmp_path / "project", tmp_path / "moved")  # the id is the registry's
    moved = Ingesting(tmp_path / "moved", project.address, project.settings.model.name)
    moved.send(2)
    moved.consume(1, 2)
    moved.close()
    foreign.close()


def test_topics_that_cannot_keep_every_event_are_named(project: Ingesting, kafka: Cluster) -> None:
    kafka.make_topics([project.topics.feedback], {"cleanup.policy": "compact"})
    kafka.make_topics([project.topics.predictions], {"max.message.bytes": "100000"})
    project.make_topics()
    faults = topic_faults(project.broker, project.topics, timeout_s=30)
    assert "set cleanup.policy=delete" in faults[project.topics.feedback]
    assert "at most 100000 bytes" in faults[project.topics.predictions]
    project.send(1)
    project.consume(1)
    notes = [note.model_dump(mode="json") for note in project.registry.ingestion()]
    assert len(lasting(notes, datetime.now(UTC), up=False)) == 2


def test_being_stuck_is_seen_with_its_place(project: Ingesting) -> None:
    project.make_topics()
    project.send(1, 2)
    project.consume(1, 2)
    project.send(3)
    folder = project.settings.path(project.settings.feature_store.event_log)
    (folder / "feedback").rename(folder / "away")
    (folder / "feedback").write_text("no folder", encoding="utf-8")
    seen: list[IngestionNote] = []

    def stuck() -> bool:
        seen[:] = [note for note in project.registry.ingestion() if note.kind == "stuck"]
        return bool(seen)

    consumer = Consumer(project.settings, project.registry, project.features, stuck_after_s=2.0)
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(consumer, stop, 0.2))
    thread.start()
    try:
        wait_until(stuck)
        assert "nothing has been stored for" in seen[0].detail
        (folder / "feedback").unlink()
        (folder / "away").rename(folder / "feedback")
        wait_until(lambda: not stuck() and project.stores(1, 2, 3))
    finally:
        stop.set()
        thread.join(60)
        consumer.reset()
