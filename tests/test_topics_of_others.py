"""Topics that somebody else made are used as they are: fewer partitions or more than configured, and added while it runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewPartitions

from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.configuration.kafka import KafkaSettings
from schemas.setting_groups import FeatureStoreSettings, ModelSettings
from schemas.settings import Settings
from services.feedback_consumer import Consumer
from serving.http.access import write_keys
from serving.messaging.connection import Broker
from serving.messaging.publisher import Publisher, Topics, topic_ids
from serving.messaging.topic_checks import LONGEST, topic_faults
from serving.registry.registry import Registry
from tests.support import apache_kafka
from tests.support.events import feedback, outgoing, prediction
from tests.support.fakes import wait_until
from tests.support.ingesting import stepped

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apache_kafka.Cluster]:
    with apache_kafka.cluster(tmp_path_factory.mktemp("kafka")) as running:
        yield running


def add_partitions(servers: str, topic: str, total: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        admin.create_partitions({topic: NewPartitions(total_count=total)})
    finally:
        admin.close()


@pytest.mark.parametrize("partitions", [1, 5])
def test_any_number_of_partitions_is_read_and_so_are_those_that_are_added_later(
    kafka: apache_kafka.Cluster, partitions: int, tmp_path: Path, model_name: str
) -> None:
    (tmp_path / "feature_store.yaml").write_text(default_feature_store_yaml(model_name), encoding="utf-8")
    write_keys(tmp_path / "keys.env")
    settings = Settings(
        root=tmp_path,
        model=ModelSettings(name=model_name),
        kafka=KafkaSettings(bootstrap_servers=kafka.servers, partitions=2),
        feature_store=FeatureStoreSettings(batch_seconds=0.2),
    )
    topics = Topics.of(model_name)
    kafka.make_topics(topics.names(), {"retention.ms": "86400000"}, partitions=partitions)
    registry = Registry(settings.registry_url, model_name)
    registry.migrate()
    registry.set_labels(["a", "b"])
    features = FeatureStore(settings)
    member = Consumer(settings, registry, features, new_partitions_s=1.0)

    def publish(start: int, stop: int) -> None:
        publisher = Publisher(Broker(kafka.servers), timeout_s=30)
        events = [event for n in range(start, stop) for event in (prediction(n), feedback(n))]
        publisher.publish_many([outgoing(topics, event) for event in events])
        publisher.close()

    def stored(n: int) -> bool:
        stepped(member)
        return features.stored_events() == {"predictions": n, "feedback": n}

    publish(0, 20)
    wait_until(lambda: stored(20), timeout_s=240, every_s=0)
    add_partitions(kafka.servers, topics.feedback, partitions + 3)
    publish(20, 60)
    ids = topic_ids(Broker(kafka.servers), topics.names(), timeout_s=30)
    wait_until(lambda: stored(60), timeout_s=240, every_s=0)
    keys = [key for key in registry.positions() if key.startswith(ids[topics.feedback])]
    assert len(keys) > partitions, "feedback in the added partitions"
    member.reset()
    registry.close()
    assert len(features.labelled_feedback()) == 60


def test_short_retention_and_too_few_replicas_are_named_with_the_way_out(
    kafka: apache_kafka.Cluster, model_name: str
) -> None:
    topics = Topics.of(model_name)
    kafka.make_topics([topics.predictions], {"retention.ms": "5400000", "max.message.bytes": str(LONGEST)})
    kafka.make_topics([topics.feedback], {"min.insync.replicas": "2"})
    kafka.make_topics([topics.dead_letters], {"max.message.bytes": str(LONGEST)})
    assert topic_faults(Broker(kafka.servers), topics, timeout_s=30) == {
        topics.predictions: "keeps messages for 1.5 hours: what is not stored within them is lost: "
        "set retention.ms=86400000 or more",
        topics.feedback: "takes no message: min.insync.replicas=2 with 1 replicas: set it to 1 or add replicas",
    }
