"""The feedback consumer on a real broker, log and registry: every event once, whatever fails in between."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.event_rows import BadMessage, read_event
from pipelines.features import FeatureStore, default_feature_store_yaml
from schemas.events import FeedbackData, FeedbackReceived, PredictionData, PredictionMade
from schemas.settings import FeatureStoreSettings, KafkaSettings, ModelSettings, Settings
from services.feedback_consumer import CRASH_POINTS, Consumer, run
from serving.broker import Outgoing, Publisher, Topics, ensure_topics
from serving.outbox import Outbox
from serving.registry import Registry
from tests.fakes import wait_until
from tests.kafka_tools import own_broker, read_all

REPOSITORY = Path(__file__).parent.parent
# `make test` pulls the plug where rows and positions part; RATCHET_ALL_CRASH_POINTS=1 pulls it everywhere.
KILLED_AT = CRASH_POINTS if os.environ.get("RATCHET_ALL_CRASH_POINTS") else ("after_commits",)


def project(root: Path, bootstrap: str, model_name: str) -> Settings:
    (root / "feature_store.yaml").write_text(default_feature_store_yaml(model_name))
    return Settings(
        root=root,
        model=ModelSettings(name=model_name),
        kafka=KafkaSettings(bootstrap_servers=bootstrap),
        feature_store=FeatureStoreSettings(batch_seconds=0.2),
    )


class Project:
    """A project's parts around one consumer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics = Topics.of(settings.model.name)
        self.registry = Registry(settings.registry_url, settings.model.name)
        self.registry.migrate()
        self.features = FeatureStore(settings)
        self.bootstrap = str(settings.kafka.bootstrap_servers)
        self.publisher = Publisher(self.bootstrap, timeout_s=5)

    def make_topics(self) -> dict[str, str]:
        return ensure_topics(self.bootstrap, self.topics.names(), partitions=2, replication_factor=1, timeout_s=5)

    def publish(self, *events: PredictionMade | FeedbackReceived) -> None:
        self.publisher.publish_many([self.outgoing(event) for event in events])

    def outgoing(self, event: PredictionMade | FeedbackReceived) -> Outgoing:
        topic = self.topics.predictions if isinstance(event, PredictionMade) else self.topics.feedback
        return Outgoing(topic, event.subject.encode(), event.model_dump_json().encode())

    def consumer(self) -> Consumer:
        return Consumer(self.settings, self.registry, FeatureStore(self.settings))

    def drain(self) -> None:
        """Run a consumer that has been told to stop: it stores what is there, then ends."""
        consumer = self.consumer()
        stop = threading.Event()
        stop.set()
        run(consumer, stop, 0.2)
        consumer.reset()

    @contextlib.contextmanager
    def running(self, consumers: int = 1) -> Iterator[None]:
        stop = threading.Event()
        members = [self.consumer() for _ in range(consumers)]
        threads = [threading.Thread(target=run, args=(member, stop, 0.2)) for member in members]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
            for member in members:
                member.reset()
        assert not any(thread.is_alive() for thread in threads)

    def places(self, name: str) -> list[tuple[str, int, int]]:
        """(topic_id, partition, offset) of every row in the log, as stored."""
        rows = [
            row
            for file in DeltaTable(self.features.log.uri(name)).file_uris()
            for row in pq.read_table(file, columns=["topic_id", "partition", "offset"]).to_pylist()
        ]
        return sorted((row["topic_id"], row["partition"], row["offset"]) for row in rows)

    def stores(self, predictions: int, feedback: int) -> bool:
        return self.features.stored_events() == {"predictions": predictions, "feedback": feedback}

    def close(self) -> None:
        self.publisher.close()
        self.registry.close()


@pytest.fixture
def parts(tmp_path: Path, broker: str, model_name: str) -> Iterator[Project]:
    made = Project(project(tmp_path, broker, model_name))
    made.make_topics()
    yield made
    made.close()


def prediction(n: int) -> PredictionMade:
    data = PredictionData(
        prediction_id=f"p{n}",
        model_name="m",
        model_version="v1",
        generation=1,
        text=f"text {n}",
        label="a",
        confidence=0.5,
        metadata={"channel": "ios"},
    )
    return PredictionMade(source="test", subject=f"p{n}", data=data)


def feedback(n: int) -> FeedbackReceived:
    data = FeedbackData(feedback_id=f"f{n}", prediction_id=f"p{n}", model_name="m", kind="correction", value="b")
    return FeedbackReceived(source="test", subject=f"p{n}", data=data)


BAD = {
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "nothing": b"",
    "another shape": b'{"hello": "world"}',
    "another type": b'{"type": "ratchet.unknown.v1"}',
    "no time zone": feedback(0).model_dump_json().encode().replace(b"Z", b""),
    "an unheard-of year": feedback(0).model_dump_json().encode().replace(b'"time":"20', b'"time":"99'),
    "no number": feedback(0).model_dump_json().encode().replace(b'"value":"b"', b'"value":Infinity'),
    "half a surrogate": feedback(0).model_dump_json().encode().replace(b'"value":"b"', b'"value":"\\ud800"'),
    "a prediction among feedback": prediction(0).model_dump_json().encode(),
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_a_bad_message_is_told_from_a_good_one_without_quoting_it(value: bytes) -> None:
    with pytest.raises(BadMessage) as caught:
        read_event(value, "feedback")
    assert "text 0" not in str(caught.value)


def test_numbers_that_no_column_holds_are_bad_messages() -> None:
    huge = prediction(0).model_dump_json().encode().replace(b'"generation":1', b'"generation":' + b"9" * 30)
    with pytest.raises(BadMessage, match="generation"):
        read_event(huge, "predictions")
    with pytest.raises(BadMessage, match="tombstone"):
        read_event(None, "predictions")


def test_good_messages_are_stored_and_bad_ones_become_dead_letters_once(parts: Project) -> None:
    good = [prediction(n) for n in range(20)] + [feedback(n) for n in range(20)]
    parts.publish(*good)
    bad = [Outgoing(parts.topics.feedback, b"key", value, (("trace", b"1"),)) for value in BAD.values() if value]
    parts.publisher.publish_many([*bad, parts.outgoing(prediction(20)), parts.outgoing(prediction(0)), bad[0]])
    parts.drain()
    assert parts.stores(21, 20)
    letters = read_all(parts.bootstrap, parts.topics.dead_letters)
    assert sorted(r.value for r in letters) == sorted([m.value for m in bad] + [bad[0].value])
    assert {r.key for r in letters} == {b"key"}
    headers = [dict(r.headers) for r in letters]
    assert all(h["trace"] == b"1" and h["ratchet-reason"] and h["ratchet-topic"] for h in headers)
    assert len({h["ratchet-position"] for h in headers}) == len(letters)

    assert len(parts.features.labelled_feedback()) == 20
    assert parts.features.look_up(["p3"])["p3"]["model_version"] == "v1"
    stored = parts.registry.positions()
    assert sum(last + 1 for last in stored.values()) == 20 + 20 + len(bad) + 3

    parts.drain()  # the positions cover the dead letters, so nothing is read again
    assert len(read_all(parts.bootstrap, parts.topics.dead_letters)) == len(letters)
    assert parts.registry.positions() == stored


def test_a_store_that_is_away_delays_and_loses_nothing(parts: Project, caplog: pytest.LogCaptureFixture) -> None:
    events, away = parts.settings.path("state/events"), parts.settings.path("state/away")
    with parts.running(), caplog.at_level(logging.WARNING, "ratchet.feedback_consumer"):
        parts.publish(prediction(0))
        wait_until(lambda: parts.stores(1, 0), timeout_s=30)
        events.rename(away)
        parts.publish(prediction(1), feedback(1))
        wait_until(lambda: "trying again" in caplog.text, timeout_s=30)
        events.mkdir(exist_ok=True)
        for table in away.iterdir():
            table.rename(events / table.name)
        wait_until(lambda: parts.stores(2, 1), timeout_s=30)
    assert len(parts.places("predictions")) == 2
    assert len(parts.places("feedback")) == 1


def test_replicas_share_the_work_and_store_nothing_twice(parts: Project) -> None:
    with parts.running(consumers=2):
        for start in range(0, 100, 20):
            parts.publish(*[prediction(n) for n in range(start, start + 20)])
            parts.publish(*[feedback(n) for n in range(start, start + 20)])
        wait_until(lambda: parts.stores(100, 100), timeout_s=60, every_s=0.2)
    for name in ("predictions", "feedback"):
        places = parts.places(name)
        assert len(places) == len(set(places)) == 100
    assert sum(last + 1 for last in parts.registry.positions().values()) == 200


def test_a_broker_that_forgets_everything_costs_nothing_that_was_answered_for(tmp_path: Path, model_name: str) -> None:
    with own_broker() as broker:
        parts = Project(project(tmp_path, broker.address, model_name))
        box = Outbox(
            tmp_path / "outbox",
            bootstrap=broker.address,
            topics=parts.topics,
            write_ahead=True,
            stored_positions=parts.registry.positions,
            max_bytes=100_000_000,
            timeout_s=2,
        )
        box.start()

        def answered(start: int, stop: int) -> None:
            for n in range(start, stop):
                box.put_prediction(prediction(n))
            for answer in [box.put_feedback(feedback(n)) for n in range(start, stop)]:
                answer.result(timeout=10)

        with parts.running():
            answered(0, 30)
            wait_until(lambda: parts.stores(30, 30), timeout_s=30, every_s=0.2)
            answered(30, 60)
            broker.kill()
            answered(60, 90)
            broker.start()
            answered(90, 120)
            wait_until(lambda: parts.stores(120, 120), timeout_s=60, every_s=0.2)
            wait_until(lambda: box.waiting == 0, timeout_s=30)
            broker.kill()
            broker.start()  # at once: nobody may have noticed
            answered(120, 150)
            wait_until(lambda: parts.stores(150, 150), timeout_s=60, every_s=0.2)
            wait_until(lambda: box.waiting == 0, timeout_s=30)
        box.close(5)
        assert len(parts.features.labelled_feedback()) == 150
        for name in ("predictions", "feedback"):
            assert len(parts.places(name)) == len(set(parts.places(name)))
        parts.close()


@pytest.mark.parametrize("point", KILLED_AT)
def test_a_consumer_killed_anywhere_stores_every_event_once(parts: Project, point: str) -> None:
    config = parts.settings.path("ratchet.toml")
    config.write_text(f'[model]\nname = "{parts.settings.model.name}"\n')
    parts.publish(*[prediction(n) for n in range(50)], *[feedback(n) for n in range(50)])
    parts.publisher.publish_many([Outgoing(parts.topics.feedback, b"k", b"bad")])

    def start(**environment: str) -> subprocess.Popen[str]:
        variables = {**os.environ, "RATCHET_KAFKA__BOOTSTRAP_SERVERS": parts.bootstrap, **environment}
        command = [sys.executable, "-m", "services.feedback_consumer", "-c", str(config)]
        return subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, text=True)

    killed = start(RATCHET_CRASH_AT=point)
    assert killed.wait(60) == -signal.SIGKILL, killed.communicate()
    again = start()
    try:
        assert again.stdout is not None
        assert any(line.strip() == "ready" for line in again.stdout)
        parts.publish(prediction(50), feedback(50))
    finally:
        again.send_signal(signal.SIGTERM)
        again.communicate(timeout=30)
        killed.communicate(timeout=1)
    assert again.returncode == 0
    assert parts.stores(51, 51)
    for name in ("predictions", "feedback"):
        assert len(parts.places(name)) == len(set(parts.places(name))) == 51
    assert sum(last + 1 for last in parts.registry.positions().values()) == 103
