"""The outbox on a real broker: nothing that was answered for is lost, whatever dies."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from schemas.events import parse_event
from serving.messaging.connection import Broker
from serving.messaging.outbox import OutboxUnavailable
from serving.messaging.outbox_sender import Keep
from serving.messaging.outbox_store import waiting
from serving.messaging.publisher import MAX_MESSAGE_BYTES, ensure_topics
from tests.support import apache_kafka
from tests.support.fakes import free_port, wait_until
from tests.support.kafka_tools import own_broker, read_all
from tests.support.outboxes import TOPICS, feedback, make_topics, outbox, prediction, published

REPOSITORY = Path(__file__).parent.parent


def test_write_ahead_answers_while_the_broker_is_away_and_publishes_in_order_when_it_comes(tmp_path: Path) -> None:
    with own_broker(running=False) as broker:
        box = outbox(tmp_path, broker.address)
        for i in range(50):
            box.put_prediction(prediction(f"p{i}"))
        answers = [box.put_feedback(feedback(f"f{i}")) for i in range(50)]
        for answer in answers:
            answer.result(timeout=60)
        assert box.published == 0
        broker.start()
        make_topics(broker.address)
        wait_until(lambda: box.published == 100)
        records = read_all(broker.address, TOPICS.feedback)
        assert [parse_event(r.value).data.model_dump()["feedback_id"] for r in records] == [f"f{i}" for i in range(50)]
        assert published(broker.address, TOPICS.predictions) == Counter({f"p{i}": 1 for i in range(50)})
        box.close(5)
        assert waiting(tmp_path) == 100


def test_write_ahead_forgets_what_is_stored_and_only_that(tmp_path: Path) -> None:
    stored: dict[str, int] = {}
    with own_broker() as broker:
        topic_id = make_topics(broker.address)[TOPICS.feedback]
        box = outbox(tmp_path, broker.address, stored=lambda: dict(stored))
        for i in range(10):
            box.put_feedback(feedback(f"f{i}")).result(timeout=60)
        wait_until(lambda: box.waiting == 10 and box.published == 10)
        stored.update({f"{topic_id}/{p}": 3 for p in range(2)})
        wait_until(lambda: box.waiting == 6)
        stored.update({f"{topic_id}/{p}": 9 for p in range(2)})
        wait_until(lambda: box.waiting == 0)
        box.close(5)
        assert set(published(broker.address, TOPICS.feedback).values()) == {1}


def test_a_broker_that_forgot_gets_everything_again_that_was_not_stored(tmp_path: Path) -> None:
    stored: dict[str, int] = {}
    with own_broker() as broker:
        old = make_topics(broker.address)[TOPICS.feedback]
        box = outbox(tmp_path, broker.address, stored=lambda: dict(stored))
        for i in range(5):
            box.put_feedback(feedback(f"stored{i}")).result(timeout=60)
        wait_until(lambda: box.published == 5)
        stored.update({f"{old}/{p}": 4 for p in range(2)})
        wait_until(lambda: box.waiting == 0)
        for i in range(5):
            box.put_feedback(feedback(f"lost{i}")).result(timeout=60)
        wait_until(lambda: box.published == 10)
        broker.kill()
        box.put_feedback(feedback("meanwhile")).result(timeout=60)
        broker.start()
        new = make_topics(broker.address)[TOPICS.feedback]
        assert new != old
        expected = Counter({**{f"lost{i}": 1 for i in range(5)}, "meanwhile": 1})
        wait_until(lambda: published(broker.address, TOPICS.feedback) == expected, every_s=0.5)
        box.close(5)


def test_an_offset_of_a_new_topic_never_passes_for_a_stored_one_of_the_old(tmp_path: Path) -> None:
    """The broker is back before anybody noticed, and the log's position in the lost topic is far ahead."""
    with own_broker() as broker:
        old = make_topics(broker.address)[TOPICS.feedback]
        looks: list[dict[str, int]] = []

        def far_ahead() -> dict[str, int]:
            looks.append({f"{old}/{p}": 1_000_000 for p in range(8)})
            return looks[-1]

        box = outbox(tmp_path, broker.address, stored=far_ahead)
        box.put_feedback(feedback("before")).result(timeout=60)
        wait_until(lambda: box.published == 1 and box.waiting == 0)
        broker.kill()
        broker.start()
        make_topics(broker.address)
        box.put_feedback(feedback("after")).result(timeout=60)
        wait_until(lambda: published(broker.address, TOPICS.feedback)["after"] >= 1, every_s=0.5)
        looked = len(looks)
        wait_until(lambda: len(looks) >= looked + 2)  # it must still be here, for nobody has stored it
        box.close(5)
        assert waiting(tmp_path) == 1


def test_what_a_killed_worker_answered_for_is_published_by_the_next(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from tests.support.outboxes import feedback, outbox
box = outbox(Path({str(tmp_path)!r}), "127.0.0.1:{free_port()}")
for answer in [box.put_feedback(feedback(f"f{{i}}")) for i in range(200)]:
    answer.result(timeout=60)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env={**os.environ}, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with own_broker() as broker:
        make_topics(broker.address)
        box = outbox(tmp_path, broker.address)
        wait_until(lambda: box.published == 200)
        box.close(5)
        assert published(broker.address, TOPICS.feedback) == Counter({f"f{i}": 1 for i in range(200)})


def test_fewer_workers_than_before_take_over_the_others_outboxes(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    boxes = [outbox(tmp_path, nobody) for _ in range(3)]
    for number, box in enumerate(boxes):
        box.put_feedback(feedback(f"f{number}")).result(timeout=60)
    for box in boxes:
        box.close(5)
    assert len(list(tmp_path.glob("outbox-*.db"))) == 3
    with own_broker() as broker:
        make_topics(broker.address)
        box = outbox(tmp_path, broker.address)
        wait_until(lambda: box.published == 3)
        box.close(5)
        assert published(broker.address, TOPICS.feedback) == Counter({"f0": 1, "f1": 1, "f2": 1})


def test_without_an_outbox_feedback_is_refused_at_once_while_the_broker_is_away_and_predictions_wait(
    tmp_path: Path,
) -> None:
    with own_broker(running=False) as broker:
        box = outbox(tmp_path, broker.address, keep=Keep.NOTHING)
        box.put_prediction(prediction("p0"))
        with pytest.raises(OutboxUnavailable, match=broker.address):
            box.put_feedback(feedback("refused")).result(timeout=60)
        broker.start()
        make_topics(broker.address)
        wait_until(lambda: published(broker.address, TOPICS.predictions) == Counter({"p0": 1}), every_s=0.3)
        wait_until(lambda: not box.put_feedback(feedback("taken")).exception(timeout=60))
        box.close(5)
        assert set(published(broker.address, TOPICS.feedback)) == {"taken"}
        assert waiting(tmp_path) == 0


def test_a_full_outbox_drops_and_counts_predictions_but_takes_feedback(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    box = outbox(tmp_path, f"127.0.0.1:{free_port()}", max_bytes=200_000, observe=lambda *counts: told.append(counts))
    for i in range(100):
        box.put_prediction(prediction(f"p{i}", text="x" * 10_000))
    wait_until(lambda: box.waiting == 100)

    def dropped() -> int:
        box.put_prediction(prediction("late"))
        return box.dropped

    wait_until(dropped)
    wait_until(lambda: told[-1] == (100, box.dropped))
    box.put_feedback(feedback("f")).result(timeout=60)
    box.close(5)
    assert box.put_feedback(feedback("too late")).exception(timeout=60)


def test_a_message_that_no_broker_would_take_does_not_block_the_others(tmp_path: Path) -> None:
    with own_broker() as broker:
        make_topics(broker.address)
        box = outbox(tmp_path, broker.address)
        box.put_prediction(prediction("huge", text="x" * MAX_MESSAGE_BYTES))
        assert isinstance(box.put_feedback(feedback("huge", "x" * MAX_MESSAGE_BYTES)).exception(5), OutboxUnavailable)
        box.put_feedback(feedback("small")).result(timeout=60)
        wait_until(lambda: box.published == 1)
        box.close(5)
        assert box.dropped == 1


def test_an_answer_that_nobody_waits_for_any_more_stops_nothing(tmp_path: Path) -> None:
    box = outbox(tmp_path, f"127.0.0.1:{free_port()}")
    box.put_feedback(feedback("cancelled")).cancel()
    box.put_feedback(feedback("kept")).result(timeout=60)
    box.close(5)
    assert waiting(tmp_path) == 2


def test_with_a_cluster_events_leave_the_disk_once_they_are_confirmed(tmp_path: Path) -> None:
    with own_broker(running=False) as broker:
        box = outbox(tmp_path, broker.address, keep=Keep.UNTIL_CONFIRMED)
        for n in range(20):
            box.put_prediction(prediction(f"p{n}"))
            box.put_feedback(feedback(f"f{n}")).result(timeout=60)
        assert (box.published, waiting(tmp_path)) == (0, 40)
        broker.start()
        make_topics(broker.address)
        wait_until(lambda: box.published == 40 and box.waiting == 0)
        records = read_all(broker.address, TOPICS.feedback)
        assert [parse_event(r.value).data.model_dump()["feedback_id"] for r in records] == [f"f{n}" for n in range(20)]
        assert {tuple(r.headers) for r in records} == {(("content-type", b"application/cloudevents+json"),)}
        box.close(5)
        assert waiting(tmp_path) == 0


@pytest.mark.kafka
def test_a_frozen_cluster_delays_nobody_and_stores_nothing_twice(tmp_path: Path) -> None:
    with apache_kafka.cluster(tmp_path / "kafka") as kafka:
        make_topics(kafka.servers)
        box = outbox(tmp_path / "outbox", kafka.servers, keep=Keep.UNTIL_CONFIRMED)
        ids = [f"f{n}" for n in range(300)]
        for n, identity in enumerate(ids):
            if n == 100:
                wait_until(lambda: box.published > 0)
                kafka.signal(signal.SIGSTOP)
            box.put_feedback(feedback(identity)).result(timeout=60)
        time.sleep(5)  # more than the outbox waits for a confirmation, twice
        kafka.signal(signal.SIGCONT)
        wait_until(lambda: box.published == 300 and box.waiting == 0)
        box.close(5)
        records = read_all(kafka.servers, TOPICS.feedback)
        assert [parse_event(r.value).data.model_dump()["feedback_id"] for r in records] == ids


@pytest.mark.kafka
def test_a_cluster_that_loses_its_leader_and_its_quorum_refuses_and_loses_nothing(tmp_path: Path) -> None:
    with apache_kafka.cluster(tmp_path / "kafka", 3) as kafka:
        broker = Broker(kafka.servers)
        ensure_topics(broker, TOPICS.names(), partitions=2, replication_factor=3, timeout_s=30)
        box = outbox(tmp_path / "outbox", kafka.servers, keep=Keep.UNTIL_CONFIRMED)
        ids = [f"f{n}" for n in range(300)]
        for n, identity in enumerate(ids):
            if n == 100:
                wait_until(lambda: box.published > 0)
                kafka.kill(1)
            if n == 200:
                kafka.kill(2)
            box.put_feedback(feedback(identity)).result(timeout=60)
        kafka.start(1, 2)
        wait_until(lambda: box.published == 300 and box.waiting == 0, timeout_s=120)
        box.close(5)
        assert published(kafka.servers, TOPICS.feedback) == Counter(ids)


@pytest.mark.kafka
def test_an_event_that_the_topic_does_not_take_is_dropped_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with apache_kafka.cluster(tmp_path / "kafka", 1) as kafka:
        kafka.make_topics(TOPICS.names(), {"max.message.bytes": "20000"})
        box = outbox(tmp_path / "outbox", kafka.servers, keep=Keep.UNTIL_CONFIRMED)
        for identity, text in (("before", "b"), ("long", "x" * 30_000), ("after", "b")):
            box.put_feedback(feedback(identity, text)).result(timeout=60)
        wait_until(lambda: box.published == 2 and box.waiting == 0)
        box.close(5)
        assert box.dropped == 1
        assert published(kafka.servers, TOPICS.feedback) == Counter({"before": 1, "after": 1})
    assert re.search(r"an event of 30\d{3} bytes is dropped: topic m.feedback takes no message", caplog.text)
