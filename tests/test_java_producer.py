"""Producers in Java against Apache Kafka: one written from the AsyncAPI document, and one that writes what nobody expects."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.asyncapi import LETTER_HEADERS
from schemas.configuration.kafka import KafkaSettings
from schemas.setting_groups import FeatureStoreSettings, ModelSettings
from schemas.settings import Settings
from services.feedback_consumer import Consumer
from serving.http.access import pseudonym, read_keys, write_keys
from serving.messaging.connection import Broker
from serving.messaging.publisher import Publisher, Topics, ensure_topics
from serving.registry.registry import Registry
from tests.support import apache_kafka
from tests.support.events import outgoing, pid, prediction
from tests.support.fakes import wait_until
from tests.support.ingesting import Ingesting, stepped
from tests.support.kafka_tools import read_all

PROGRAMS = Path(__file__).parent / "support"
DOCUMENT = Path(__file__).parents[1] / "schemas/json/asyncapi.json"
DEAD = {
    "f-unknown": "data.value: not in the taxonomy: 'astronomy'; add it with `ratchet labels add`, or use one of its labels",
    "f-batch": "content-type: application/cloudevents-batch+json: expected application/cloudevents+json, one event in a message",
    "f-untyped": "type: missing or unknown: expected ratchet.feedback.received.v1",
    "f-score7": "data.value: expected a number between 0 and 1",
    "f-sideways": 'data.value: expected "up" or "down"',
}

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with apache_kafka.cluster(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka.servers


def produce(program: str, servers: str, model_name: str) -> str:
    java = shutil.which("java")
    assert java is not None
    classes = f"{apache_kafka.CLIENTS}/*"
    done = subprocess.run(
        [java, "-cp", classes, PROGRAMS / program, servers, model_name, *[pid(n) for n in range(8)]],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_java_producer_sends_is_stored_as_over_http(servers: str, tmp_path: Path, model_name: str) -> None:
    (tmp_path / "feature_store.yaml").write_text(default_feature_store_yaml(model_name), encoding="utf-8")
    write_keys(tmp_path / "keys.env")
    secret = read_keys(tmp_path / "keys.env").secret
    settings = Settings(
        root=tmp_path,
        model=ModelSettings(name=model_name),
        kafka=KafkaSettings(bootstrap_servers=servers),
        feature_store=FeatureStoreSettings(batch_seconds=0.2),
    )
    broker, topics = Broker(servers), Topics.of(model_name)
    registry = Registry(settings.registry_url, model_name)
    registry.migrate()
    registry.set_labels(["a", "b"])
    ensure_topics(broker, topics.names(), partitions=2, replication_factor=1, timeout_s=30)
    publisher = Publisher(broker, timeout_s=30)
    publisher.publish_many([outgoing(topics, prediction(n)) for n in range(8)])
    publisher.close()
    sent = produce("FeedbackProducer.java", servers, model_name)
    assert sent.split("\n")[-3:] == ["committed", "aborted", ""]
    features = FeatureStore(settings)
    consumer = Consumer(settings, registry, features)
    wait_until(lambda: stepped(consumer) == 0 and consumer.drained(), timeout_s=240, every_s=0)
    consumer.reset()
    letters = [(r.value, dict(r.headers)) for r in read_all(servers, topics.dead_letters)]
    registry.close()
    rows = {row.prediction_id: row for row in features.labelled_feedback()}
    md5 = pseudonym(secret, "d41d8cd98f00b204e9800998ecf8427e")
    bob, eve = pseudonym(secret, "bob"), pseudonym(secret, "eve")
    assert {(p, row.kind, row.value, row.user) for p, row in rows.items()} == {
        (pid(0), "correction", "b", bob),
        (pid(1), "rating", "up", bob),
        (pid(2), "comment", "call <PHONE>, account <IBAN>", bob),
        (pid(3), "score", 0.25, md5),
        (pid(4), "correction", "b", None),
        (pid(7), "rating", "down", eve),
    }
    assert features.stored_events()["feedback"] == 8, (
        "with the withdrawn one and its retraction, without the aborted one"
    )
    reasons = {
        re.findall(rb'"feedback_id":"(f-\w+)', value)[0].decode(): headers["ratchet-reason"].decode()
        for value, headers in letters
    }
    assert reasons == DEAD | {"f-foreign": f"data.model_name: expected {model_name}"}
    documented = json.loads(DOCUMENT.read_text(encoding="utf-8"))["components"]["messages"]["DeadLetter"]["headers"]
    own = {name for _, headers in letters for name in headers if name.startswith("ratchet-")}
    assert set(documented["required"]) == own <= documented["properties"].keys() == LETTER_HEADERS.keys()


def test_nothing_that_a_java_producer_writes_stops_ingestion(servers: str, tmp_path: Path, model_name: str) -> None:
    project = Ingesting(tmp_path / "project", servers, model_name)
    project.make_topics()
    sent = produce("StrangeProducer.java", servers, model_name).splitlines()
    consumer = Consumer(project.settings, project.registry, project.features)
    wait_until(lambda: stepped(consumer) == 0 and consumer.drained(), timeout_s=240, every_s=0)
    consumer.reset()
    letters = project.letters()
    stored = project.features.stored_events()["feedback"]
    positions = project.registry.positions()
    project.close()
    codecs, strange = sent[:5], sent[5:14]
    assert codecs == ["none", "gzip", "snappy", "lz4", "zstd"] and sent[-1] == "last"
    assert stored == len(codecs) + 3, "one of each codec, two of odd times, the last"
    assert {int(headers["ratchet-offset"]) for _, headers in letters} == {sent.index(name) for name in strange}
    assert all(headers["ratchet-reason"] for _, headers in letters)
    assert list(positions.values()) == [len(sent) - 1]
