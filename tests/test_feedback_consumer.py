"""The feedback consumer on a real broker, log and registry: every event once, whatever fails in between."""

import contextlib
import json
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.event_rows import BadMessage, read_event, row_of
from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.configuration.kafka import KafkaSettings
from schemas.events import FeedbackReceived, PredictionMade, utc_now
from schemas.setting_groups import FeatureStoreSettings, ModelSettings
from schemas.settings import Settings
from services.feedback_consumer import Consumer, run
from services.ingestion.feedback_gate import FeedbackGate
from services.ingestion.feedback_upkeep import FeedbackUpkeep
from services.ingestion.isolation import IsolationLimits, Unstorable
from services.ingestion.live_counts import LiveCounts, live_counts
from services.ingestion.metrics import ConsumerMetrics
from services.ingestion.micro_batch import Source
from services.ingestion.replay import REMOVE_ONE, REPLAY_ONE, replay, replay_one, settled_letters, waiting_letters
from serving.http.access import pseudonym, read_keys, write_keys
from serving.messaging.connection import Broker
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import MAX_MESSAGE_BYTES, Outgoing, Publisher, Topics, ensure_topics
from serving.registry.registry import Registry
from tests.support.crashes import places
from tests.support.events import feedback, fid, named, outgoing, pid, prediction
from tests.support.fakes import wait_until
from tests.support.ingesting import stepped
from tests.support.kafka_tools import own_broker, read_all

Headers = Sequence[tuple[str, bytes]]


def project(root: Path, bootstrap: str, model_name: str) -> Settings:
    (root / "feature_store.yaml").write_text(default_feature_store_yaml(model_name), encoding="utf-8")
    return Settings(
        root=root,
        model=ModelSettings(name=model_name),
        kafka=KafkaSettings(bootstrap_servers=bootstrap),
        feature_store=FeatureStoreSettings(batch_seconds=0.2),
    )


DRAIN_S = 90  # a group of the embedded broker may let a member in later than a consumer that stops would wait


class Project:
    """A project's parts around one consumer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics = Topics.of(settings.model.name)
        self.registry = Registry(settings.registry_url, settings.model.name)
        self.registry.migrate()
        self.registry.set_labels(["a", "b", "first", "second thoughts"])
        write_keys(settings.path(settings.access.keys))
        self.features = FeatureStore(settings)
        self.bootstrap = str(settings.kafka.bootstrap_servers)
        self.broker = Broker(self.bootstrap)
        self.publisher = Publisher(self.broker, timeout_s=30)

    def make_topics(self) -> dict[str, str]:
        return ensure_topics(self.broker, self.topics.names(), partitions=2, replication_factor=1, timeout_s=30)

    def publish(self, *events: PredictionMade | FeedbackReceived) -> None:
        self.publisher.publish_many([self.outgoing(event) for event in events])

    def outgoing(self, event: PredictionMade | FeedbackReceived) -> Outgoing:
        return outgoing(self.topics, event)

    def gate(self) -> FeedbackGate:
        return FeedbackGate(self.settings, self.registry)

    def consumer(self, features: FeatureStore | None = None, **parts: Any) -> Consumer:
        return Consumer(self.settings, self.registry, features or FeatureStore(self.settings), **parts)

    def let_in(self, **parts: Any) -> Consumer:
        """A consumer that the group has let in; the embedded broker may need a second group for that."""
        consumer = self.consumer(**parts)

        def joined() -> bool:
            stepped(consumer, 0.1)
            return consumer.ready

        wait_until(joined, timeout_s=90, every_s=0)
        return consumer

    def letters(self) -> list[tuple[bytes, dict[str, bytes]]]:
        """Values and headers of the dead letters."""
        return [(r.value, dict(r.headers)) for r in read_all(self.bootstrap, self.topics.dead_letters)]

    def drain(self, **parts: Any) -> Consumer:
        """Run a consumer that has been told to stop: it stores what is there, then ends."""
        consumer = self.consumer(**parts)
        stop = threading.Event()
        stop.set()
        run(consumer, stop, 0.2, drain_s=DRAIN_S)
        consumer.reset()
        return consumer

    @contextlib.contextmanager
    def running(self, consumers: int = 1) -> Iterator[None]:
        stop = threading.Event()
        members = [self.consumer() for _ in range(consumers)]
        threads = [
            threading.Thread(target=run, args=(member, stop, 0.2), kwargs={"drain_s": DRAIN_S}) for member in members
        ]
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
        return places(self.features, name)

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


BAD: dict[str, bytes] = {
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "nothing": b"",
    "another shape": b'{"hello": "world"}',
    "another type": b'{"type": "ratchet.unknown.v1"}',
    "no time zone": feedback(0).model_dump_json().encode().replace(b"Z", b""),
    "an unheard-of year": feedback(0).model_dump_json().encode().replace(b'"time":"20', b'"time":"99'),
    "no number": feedback(0).model_dump_json().encode().replace(b'"value":"b"', b'"value":Infinity'),
    "half a surrogate": feedback(0).model_dump_json().encode().replace(b'"value":"b"', b'"value":"\\ud800"'),
    "oversized": b'{"a": "' + b"x" * MAX_MESSAGE_BYTES + b'"}',
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
    bad = [
        Outgoing(parts.topics.feedback, b"key", value, (("trace", b"1"),))
        for value in BAD.values()
        if 0 < len(value) < 1000
    ]
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
    assert parts.features.look_up([pid(3)])[pid(3)]["model_version"] == "v1"
    stored = parts.registry.positions()
    assert sum(last + 1 for last in stored.values()) == 20 + 20 + len(bad) + 3

    parts.drain()  # the positions cover the dead letters, so nothing is read again
    assert len(read_all(parts.bootstrap, parts.topics.dead_letters)) == len(letters)
    assert parts.registry.positions() == stored


def test_a_store_that_is_away_delays_and_loses_nothing(parts: Project, caplog: pytest.LogCaptureFixture) -> None:
    events, away = parts.settings.path("state/events"), parts.settings.path("state/away")
    with parts.running(), caplog.at_level(logging.WARNING, "ratchet.feedback_consumer"):
        parts.publish(prediction(0))
        wait_until(lambda: parts.stores(1, 0))
        events.rename(away)
        parts.publish(prediction(1), feedback(1))
        wait_until(lambda: "trying again" in caplog.text)
        events.mkdir(exist_ok=True)
        for table in away.iterdir():
            table.rename(events / table.name)
        wait_until(lambda: parts.stores(2, 1))
    assert len(parts.places("predictions")) == 2
    assert len(parts.places("feedback")) == 1


def test_replicas_share_the_work_and_store_nothing_twice(parts: Project) -> None:
    with parts.running(consumers=2):
        for start in range(0, 100, 20):
            parts.publish(*[prediction(n) for n in range(start, start + 20)])
            parts.publish(*[feedback(n) for n in range(start, start + 20)])
        wait_until(lambda: parts.stores(100, 100), every_s=0.2)
    for name in ("predictions", "feedback"):
        places = parts.places(name)
        assert len(places) == len(set(places)) == 100
    assert sum(last + 1 for last in parts.registry.positions().values()) == 200


def test_a_broker_that_forgets_everything_costs_nothing_that_was_answered_for(tmp_path: Path, model_name: str) -> None:
    with own_broker() as broker:
        parts = Project(project(tmp_path, broker.address, model_name))
        box = Outbox(
            tmp_path / "outbox",
            broker=Broker(broker.address),
            topics=parts.topics,
            keep=Keep.UNTIL_STORED,
            stored_positions=parts.registry.positions,
            max_bytes=100_000_000,
            timeout_s=2,
        )
        box.start()

        def answered(start: int, stop: int) -> None:
            for n in range(start, stop):
                box.put_prediction(named(prediction(n), model_name))
            for answer in [box.put_feedback(named(feedback(n), model_name)) for n in range(start, stop)]:
                answer.result(timeout=60)

        with parts.running():
            answered(0, 30)
            wait_until(lambda: parts.stores(30, 30), every_s=0.2)
            answered(30, 60)
            broker.kill()
            answered(60, 90)
            broker.start()
            answered(90, 120)
            wait_until(lambda: parts.stores(120, 120), every_s=0.2)
            wait_until(lambda: box.waiting == 0)
            broker.kill()
            broker.start()  # at once: nobody may have noticed
            answered(120, 150)
            wait_until(lambda: parts.stores(150, 150), every_s=0.2)
            wait_until(lambda: box.waiting == 0)
        box.close(5)
        assert len(parts.features.labelled_feedback()) == 150
        for name in ("predictions", "feedback"):
            assert len(parts.places(name)) == len(set(parts.places(name)))
        parts.close()


def poisoned(*numbers: int) -> Any:
    """A reader to which some predictions are poison: what a bug of ours would do."""

    def read(value: bytes | None, table: str, headers: Headers) -> PredictionMade | FeedbackReceived:
        event = read_event(value, table, headers)
        if event.subject in {pid(n) for n in numbers}:
            raise ArithmeticError("a bug")
        return event

    return read


def test_a_message_that_fails_alone_becomes_a_dead_letter_and_its_neighbours_are_stored(
    parts: Project,
) -> None:
    parts.publish(*[prediction(n) for n in range(20)], *[feedback(n) for n in range(20)])
    parts.drain(read=poisoned(7, 13), isolation=IsolationLimits(pause_s=0.005))
    assert parts.stores(18, 18)
    assert len(parts.places("predictions")) == len(parts.places("feedback")) == 18
    letters = parts.letters()
    assert len(letters) == 4
    assert all(headers["ratchet-reason"] == b"failed 3 times alone: ArithmeticError" for _, headers in letters)

    done = replay(parts.broker, parts.topics, parts.gate(), timeout_s=30)  # the bug is mended
    assert (done.published, done.still_bad) == (4, 0)
    parts.drain()
    assert parts.stores(20, 20)
    assert len(parts.features.labelled_feedback()) == 20


def test_if_everything_fails_it_is_nobody_in_particulars_fault(parts: Project) -> None:
    limits = IsolationLimits(pause_s=0.0005, failed_in_a_row=2)
    consumer = parts.let_in(read=poisoned(*range(8)), isolation=limits)
    parts.publish(*[feedback(n) for n in range(8)])
    with pytest.raises(Unstorable):
        wait_until(lambda: consumer.step(0.2))
    consumer.reset()
    assert len(parts.letters()) <= 2
    parts.drain()
    assert parts.features.stored_events()["feedback"] + len(parts.letters()) == 8


def test_a_full_disk_is_no_messages_fault(parts: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    features = FeatureStore(parts.settings)
    consumer = parts.let_in(features=features)
    parts.publish(feedback(0), prediction(0))
    with monkeypatch.context() as full_disk:
        full_disk.setattr(features.log, "append", full)
        with pytest.raises(OSError, match="No space"):
            wait_until(lambda: consumer.step(0.2))
    consumer.reset()
    parts.drain()
    assert parts.letters() == []
    assert parts.stores(1, 1)


def test_dead_letters_are_replayed_after_a_fix_and_the_others_stay(parts: Project) -> None:
    bad = [parts.outgoing(feedback(0))]
    parts.publish(prediction(0))
    parts.publisher.publish_many([*bad, Outgoing(parts.topics.feedback, b"k", b"never", (("trace", b"1"),))])
    outage = parts.drain(
        read=lambda value, table, headers: read_event(b"" if table == "feedback" else value, table, headers)
    )
    assert (
        outage.metrics.registry.get_sample_value("ratchet_dead_letters_total", {"model": parts.settings.model.name})
        == 2
    )
    assert parts.stores(1, 0)
    for _ in range(2):
        done = replay(parts.broker, parts.topics, parts.gate(), timeout_s=30)
        parts.drain()
        assert parts.stores(1, 1)
        assert len(parts.places("feedback")) == 1  # the second replay has nothing but what is still bad
        assert done.still_bad == 1
    assert replay(parts.broker, parts.topics, parts.gate(), timeout_s=30).as_dict() == {
        "published": 0,
        "still_bad": 1,
        "in_the_log": 0,
    }
    headers = [headers for value, headers in parts.letters() if value == b"never"][-1]
    assert (headers["trace"], headers["ratchet-topic"]) == (b"1", parts.topics.feedback.encode())
    assert headers["ratchet-offset"].isdigit()


def test_feedback_waits_for_its_prediction_and_expires_into_the_dead_letters(parts: Project) -> None:
    parts.publish(feedback(0), feedback(1), feedback(1, feedback_id=fid(99), kind="rating", value="up"))
    waiting = parts.drain()
    assert waiting.upkeep.live.waiting == 3
    assert parts.features.export().num_rows == 3
    later = utc_now() + timedelta(hours=parts.settings.feature_store.orphan_hours + 1)
    # A clock that leapt ahead expires nothing: what is stored does not vouch for it, and no time has passed.
    parts.drain(clock=lambda: later, monotonic=lambda: 0.0)
    assert parts.letters() == []
    parts.publish(prediction(0))
    hours = count(0, 3600 * 200).__next__
    # looks for orphans before it stores what has come
    expiring = parts.drain(clock=lambda: later, monotonic=hours)
    name = {"model": parts.settings.model.name}
    expired = expiring.metrics.registry.get_sample_value("ratchet_orphans_expired_total", name)
    letters = parts.letters()
    assert len(letters) == expired
    assert {headers["ratchet-reason"] for _, headers in letters} == {b"orphan: no prediction within 168 hours"}
    parts.drain(clock=lambda: later, monotonic=count(0, 3600 * 200).__next__)
    assert len(parts.letters()) == expired
    assert {read_event(value, "feedback").data.model_dump()["feedback_id"] for value, _ in letters} >= {fid(1), fid(99)}
    # What is a dead letter is no row any more, unless its prediction comes after all.
    assert [row["feedback_id"] for row in parts.features.export().to_pylist()] == [fid(0)]
    parts.publish(prediction(1))
    parts.drain()
    assert {row["feedback_id"] for row in parts.features.export().to_pylist()} == {fid(0), fid(1), fid(99)}
    assert replay(parts.broker, parts.topics, parts.gate(), timeout_s=30).in_the_log == expired


def test_orphans_expire_as_soon_as_their_partition_is_assigned(parts: Project) -> None:
    parts.publish(feedback(0))
    parts.drain()
    sent: list[Outgoing] = []
    later = utc_now() + timedelta(hours=parts.settings.feature_store.orphan_hours + 1)
    metrics = ConsumerMetrics(parts.settings.model.name)
    upkeep = FeedbackUpkeep(
        parts.settings, FeatureStore(parts.settings), metrics, sent.extend, count(0, 3600 * 200).__next__
    )
    source = Source(parts.topics, parts.make_topics())
    upkeep.run_due(source, set(), later)  # the group has assigned nothing yet
    assert sent == []
    upkeep.run_due(source, {0, 1}, later)
    assert len(sent) == 1
    upkeep.run_due(source, {0, 1}, later)
    assert len(sent) == 1


def test_live_counts_say_which_version_was_contradicted(parts: Project) -> None:
    parts.publish(*[prediction(n) for n in range(4)], prediction(4, version="v2"))
    parts.publish(
        feedback(0),
        feedback(0),  # the same once more
        feedback(1, value="a"),
        feedback(2, kind="rating", value="up"),
        feedback(3, kind="comment", value="hm"),
        feedback(3, kind="retract", value=fid(3), feedback_id="r"),
        feedback(4, kind="rating", value="down"),
        feedback(5),
    )
    expected = {"v1": {"agreed": 2, "disagreed": 1}, "v2": {"disagreed": 1}}
    with parts.running():
        wait_until(lambda: live_counts(parts.features) == expected, every_s=0.2)
        parts.publish(feedback(6), prediction(5, version="v2", label="b"))
        expected["v2"]["agreed"] = 1
        wait_until(lambda: live_counts(parts.features) == expected, every_s=0.2)
    parts.publish(feedback(6), prediction(6, version="v3"))
    parts.drain()
    with parts.running():  # counted anew from the log, the repeated one once
        expected["v3"] = {"disagreed": 1}
        wait_until(lambda: live_counts(parts.features) == expected, every_s=0.2)


def test_a_clock_in_the_future_does_not_win_for_ever(parts: Project) -> None:
    ahead = utc_now() + timedelta(days=400)
    parts.publish(prediction(0, time=ahead), feedback(0, value="first", user="u", time=ahead))
    consumer = parts.drain()
    name = {"model": parts.settings.model.name}
    assert consumer.metrics.registry.get_sample_value("ratchet_clocks_ahead_total", name) == 2
    parts.publish(feedback(0, feedback_id=fid(2), value="second thoughts", user="u"))
    parts.drain()
    (row,) = parts.features.labelled_feedback()
    assert (row.feedback_id, row.value) == (fid(2), "second thoughts")
    parts.publish(prediction(0, version="v2"))
    parts.drain()
    assert parts.features.look_up([pid(0)])[pid(0)]["model_version"] == "v2"


def raw(parts: Project, n: int, **changes: object) -> Outgoing:
    """Feedback n as somebody else's producer would send it."""
    value = json.loads(named(feedback(n), parts.settings.model.name).model_dump_json())
    value["data"] |= changes
    return Outgoing(parts.topics.feedback, pid(n).encode(), json.dumps(value).encode())


def test_kafka_is_no_second_door(parts: Project) -> None:
    bad = {
        "data.value: not in the taxonomy: 'astronomy'": raw(parts, 1, value="astronomy"),
        "data.value: ['a']: expected a label": raw(parts, 1, value=["a"]),
        "data.value: not a finite number": raw(parts, 1, value=math.nan),
        'data.value: expected "up" or "down"': raw(parts, 1, kind="rating", value="sideways"),
        "data.value: expected a number between 0 and 1": raw(parts, 1, kind="score", value=7),
        "data.prediction_id: expected a UUID": raw(parts, 1, prediction_id="p1"),
        f"data.model_name: expected {parts.settings.model.name}": raw(parts, 1, model_name="another"),
        "data.feedback_id: String should have at most 128 characters": raw(parts, 1, feedback_id="x" * 129),
    }
    good = [
        raw(parts, 1, value="\u00a0b\u200b", user="bob", feedback_id="bob@example.org"),
        raw(parts, 2, kind="comment", value="mail bob@example.org", feedback_id=fid(2)),
    ]
    parts.publish(prediction(1), prediction(2))
    parts.publisher.publish_many([*bad.values(), *good])
    parts.drain()
    reasons = sorted(headers["ratchet-reason"].decode() for _, headers in parts.letters())
    assert len(reasons) == len(bad)
    assert all(any(reason.startswith(wanted) or wanted in reason for reason in reasons) for wanted in bad), reasons
    stored = {row.kind: row for row in parts.features.labelled_feedback()}
    assert (stored["correction"].value, stored["comment"].value) == ("b", "mail <EMAIL>")
    secret = read_keys(parts.settings.path("keys.env")).secret
    assert stored["correction"].user == pseudonym(secret, "bob")
    assert "bob" not in stored["correction"].feedback_id
    assert parts.features.count_labelled_since({}) == 1


def test_a_label_that_the_taxonomy_gets_later_comes_back_from_the_dead_letters(parts: Project) -> None:
    parts.publish(prediction(1))
    parts.publisher.publish_many([raw(parts, 1, value="astronomy")])
    parts.drain()
    assert parts.features.stored_events()["feedback"] == 0
    assert replay(parts.broker, parts.topics, parts.gate(), timeout_s=30).still_bad == 1
    parts.registry.take_up_labels(["astronomy"], actor="me")
    assert replay(parts.broker, parts.topics, parts.gate(), timeout_s=30).published == 1
    parts.drain()
    assert [row.value for row in parts.features.labelled_feedback()] == ["astronomy"]


def test_dead_letters_are_listed_replayed_and_removed_one_by_one(parts: Project) -> None:
    labels = ("astronomy", "botany", "chemistry")
    parts.publish(*[prediction(n) for n in range(3)])
    parts.publisher.publish_many([raw(parts, n, value=label) for n, label in enumerate(labels)])
    parts.drain()

    def waiting() -> dict[str, str]:
        listed = waiting_letters(parts.broker, parts.topics, settled_letters(parts.registry), 10)
        assert all(one.topic == parts.topics.feedback and one.size > 50 for one in listed)
        return {label: one.position for one in listed for label in labels if label in one.reason}

    letters = waiting()
    assert set(letters) == set(labels)
    assert replay_one(parts.broker, parts.topics, parts.gate(), letters["astronomy"], timeout_s=5).still_bad == 1
    assert waiting() == letters  # looking and failing change nothing
    parts.registry.take_up_labels(labels, actor="me")
    assert replay_one(parts.broker, parts.topics, parts.gate(), letters["astronomy"], timeout_s=5).published == 1
    parts.registry.audit("me", REPLAY_ONE, {"position": letters["astronomy"]})
    parts.registry.audit("me", REMOVE_ONE, {"position": letters["botany"], "reason": "spam"})
    assert waiting() == {"chemistry": letters["chemistry"]}
    with pytest.raises(KeyError, match="t/0/99"):
        replay_one(parts.broker, parts.topics, parts.gate(), "t/0/99", timeout_s=5)
    done = replay(parts.broker, parts.topics, parts.gate(), timeout_s=5, settled=settled_letters(parts.registry))
    assert (done.published, done.settled) == (1, 2)
    assert waiting() == {}
    parts.drain()
    assert sorted(str(row.value) for row in parts.features.labelled_feedback()) == ["astronomy", "chemistry"]


def test_what_was_erased_comes_back_neither_from_kafka_nor_from_the_dead_letters(parts: Project) -> None:
    bob = pseudonym(read_keys(parts.settings.path("keys.env")).secret, "bob")
    parts.publish(prediction(1), prediction(2))
    parts.publisher.publish_many([raw(parts, 1, value="astronomy", user="bob")])
    parts.drain()
    parts.registry.exclude("user", [bob], actor="me", action="feedback erase", detail={})
    done = replay(parts.broker, parts.topics, parts.gate(), timeout_s=30)
    assert (done.published, done.still_bad, done.erased) == (0, 0, 1)
    earlier, later = utc_now() - timedelta(minutes=1), utc_now() + timedelta(minutes=1)
    parts.publish(feedback(1, user="bob", time=earlier), feedback(2, user="bob", time=later))
    parts.drain()
    assert [row.prediction_id for row in parts.features.labelled_feedback()] == [pid(2)]


def test_counts_are_of_what_is_effective_after_a_topic_was_made_anew(parts: Project) -> None:
    """After an unclean stop the outbox publishes again, to a topic with another id, what the log holds already."""
    log, now = parts.features.log, utc_now()

    def store(events: Sequence[PredictionMade | FeedbackReceived], topic: str, first: int = 0) -> None:
        table = "predictions" if isinstance(events[0], PredictionMade) else "feedback"
        rows = [row_of(event, now, topic, 0, first + n) for n, event in enumerate(events)]
        log.append(table, pa.Table.from_pylist(rows, schema=SCHEMAS[table]))

    store([prediction(n) for n in range(24)], "P")
    parts.features.write_online([prediction(n) for n in range(24)])
    said = [feedback(n) for n in range(24)]
    store(said, "old")
    later = count(step=10).__next__
    counts = LiveCounts(parts.features, later)
    counts.start(["old/0"])
    counts.write(now)
    assert live_counts(parts.features) == {"v1": {"disagreed": 24}}
    store([*said[20:], feedback(24)], "fresh")
    restarted = LiveCounts(parts.features, later)
    restarted.start(["fresh/0"])
    restarted.write(now + timedelta(seconds=5))
    assert live_counts(parts.features) == {"v1": {"disagreed": 24}}
    assert restarted.waiting == 1
    restarted.add([("fresh/0", feedback(3))])  # once more, to the running consumer
    assert restarted.stale
    store([feedback(0, feedback_id="r", kind="retract", value=fid(0))], "fresh", first=5)
    restarted.start(["fresh/0"])
    restarted.write(now + timedelta(seconds=10))
    assert live_counts(parts.features) == {"v1": {"disagreed": 23}}
