"""Checks of topics that somebody else made or changed, and whose they are.

Turns the configuration of topics into faults with a way out, and a mark in a consumer group into their project. The feedback
consumer, `ratchet up` and `ratchet doctor` call it. It changes no topic.

The mark is the metadata of an offset that the group '<model>.owner' commits: it needs no topic of its own, and moves with the
cluster. Kafka forgets it seven days after the last commit (offsets.retention.minutes), so a running consumer renews it. A
cluster on which no project of this version has run has none.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    UnsupportedVersionError,
)
from kafka.structs import OffsetAndMetadata

from serving.messaging.causes import Right
from serving.messaging.connection import Broker, connected, reaching
from serving.messaging.publisher import HEADER_BYTES, MAX_MESSAGE_BYTES, Topics

MARK = "ratchet project "
COMPACTED = "is compacted"  # begins the one fault with which a topic is refused at the start
SHORTEST_RETENTION_MS = 86_400_000  # a day: a consumer may be down for a night
LONGEST = MAX_MESSAGE_BYTES + HEADER_BYTES


class ForeignTopics(RuntimeError):
    """The topics belong to another project of the same model name."""


def topic_faults(broker: Broker, topics: Topics, *, timeout_s: float) -> dict[str, str]:
    """Return topic -> what is wrong with its configuration, with the way out. Raises BrokerUnavailable.

    Without the right to describe configurations nothing is known to be wrong.
    """
    names = [topics.predictions, topics.feedback, topics.dead_letters]
    limit = int(timeout_s * 1000)
    with reaching(broker, Right("DescribeConfigs", tuple(names))):
        admin = connected(KafkaAdminClient, broker, request_timeout_ms=max(limit, 1000), bootstrap_timeout_ms=limit)
        try:
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
            described = admin.describe_configs(resources, config_filter="all").get("topic", {})
            replicas = {
                topic["name"]: min(len(partition["replica_nodes"]) for partition in topic["partitions"])
                for topic in admin.describe_topics(names)
                if topic["partitions"]
            }
        except (ClusterAuthorizationFailedError, TopicAuthorizationFailedError, UnsupportedVersionError):
            return {}
        finally:
            admin.close()
    return {name: fault for name in names if (fault := _fault(described.get(name, {}), replicas.get(name)))}


def _fault(config: Mapping[str, Any], replicas: int | None) -> str | None:
    """Return what is wrong with a topic's configuration, the worst first; None if nothing is."""
    values = {key: str(entry["value"]) for key, entry in config.items()}
    if "compact" in values.get("cleanup.policy", "delete"):
        return (
            f"{COMPACTED}: Kafka keeps only the newest message of each key, whether the older ones are stored or not: set "
            "cleanup.policy=delete"
        )
    if replicas is not None and (wanted := int(values.get("min.insync.replicas", 1))) > replicas:
        return f"takes no message: min.insync.replicas={wanted} with {replicas} replicas: set it to {replicas} or add replicas"
    if (most := int(values.get("max.message.bytes", LONGEST))) < LONGEST:
        return f"takes messages of at most {most} bytes; longer events are dropped and counted: set max.message.bytes={LONGEST}"
    if 0 <= (kept := int(values.get("retention.ms", -1))) < SHORTEST_RETENTION_MS:
        return (
            f"keeps messages for {kept / 3_600_000:.2g} hours: what is not stored within them is lost: "
            f"set retention.ms={SHORTEST_RETENTION_MS} or more"
        )
    return None


def owner(broker: Broker, topics: Topics) -> str | None:
    """Return the id of the project that the topics belong to; None if none has marked them. Raises BrokerUnavailable."""
    right = Right("Read", (), topics.owner_group)
    with (
        reaching(broker, right),
        contextlib.suppress(GroupAuthorizationFailedError),
        _owners(broker, topics) as consumer,
    ):
        return _owner(consumer, topics)
    return None


def claim(broker: Broker, topics: Topics, project_id: str) -> None:
    """Mark the topics as this project's, or renew its mark. Without the right to read the group, nothing is marked.

    Raises:
        ForeignTopics: another project has marked them.
        BrokerUnavailable: the broker does not answer.

    """
    known: str | None = None
    right = Right("Read", (), topics.owner_group)
    with (
        reaching(broker, right),
        contextlib.suppress(GroupAuthorizationFailedError),
        _owners(broker, topics) as consumer,
    ):
        known = _owner(consumer, topics)
        if known in (None, project_id):
            mark = OffsetAndMetadata(0, f"{MARK}{project_id}", -1)
            consumer.commit({TopicPartition(topics.feedback, 0): mark}, timeout_ms=5000)
            known = _owner(consumer, topics)
    if known not in (None, project_id):
        raise ForeignTopics(foreign(broker, topics, str(known)))


def foreign(broker: Broker, topics: Topics, project_id: str) -> str:
    """Return what to do about topics that belong to another project."""
    group, events = topics.owner_group, f"{topics.feedback} and {topics.predictions} on {broker}"
    return (
        f"{events} belong to another project (id {project_id[:8]}): two projects would divide the events between them. Set "
        f"model.name or kafka.topic_prefix; if that project is gone, delete the consumer group {group} "
        f"(kafka-consumer-groups.sh --delete --group {group})"
    )


@contextlib.contextmanager
def _owners(broker: Broker, topics: Topics) -> Iterator[Any]:
    """Yield a consumer that joins no group and reads no topic."""
    consumer = connected(
        KafkaConsumer,
        broker,
        group_id=topics.owner_group,
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        request_timeout_ms=10_000,
        bootstrap_timeout_ms=5000,
    )
    try:
        yield consumer
    finally:
        consumer.close(autocommit=False, timeout_ms=2000)


def _owner(consumer: Any, topics: Topics) -> str | None:
    committed = consumer.committed(TopicPartition(topics.feedback, 0), metadata=True, timeout_ms=5000)
    metadata = committed.metadata if committed is not None else None
    return metadata.removeprefix(MARK) if metadata and metadata.startswith(MARK) else None
