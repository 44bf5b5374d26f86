"""The rights that a project needs by the broker's access control, compared with those that it has.

Turns topics and a consumer group into the missing rights, without using any of them. `ratchet doctor` calls it.
"""

from collections.abc import Mapping

from kafka import KafkaAdminClient
from kafka.errors import BrokerResponseError, GroupAuthorizationFailedError

from serving.messaging import causes
from serving.messaging.causes import Right
from serving.messaging.connection import Broker, connected, reaching
from serving.messaging.publisher import Topics


def needed(topics: Topics) -> dict[str, tuple[str, ...]]:
    """Return topic -> operations that serving, consumer, rounds and the command line need together."""
    return {
        topics.predictions: ("Read", "Write"),
        topics.feedback: ("Read", "Write"),
        topics.promotions: ("Write",),
        topics.dead_letters: ("Read", "Write"),
    }


def missing_rights(broker: Broker, topics: Topics, *, timeout_s: float) -> list[str]:
    """Return one line for each operation that this client may not use, with the command that allows it.

    A broker that does not tell what a client may do, as the embedded one, lacks nothing. Raises BrokerUnavailable.
    """
    wanted = needed(topics)
    limit = int(timeout_s * 1000)
    with reaching(broker, Right("Describe", tuple(wanted))):
        admin = connected(KafkaAdminClient, broker, request_timeout_ms=max(limit, 1000), bootstrap_timeout_ms=limit)
        try:
            described = {t["name"]: t.get("authorized_operations") for t in admin.describe_topics(list(wanted))}
            lines = _of_topics(broker, wanted, described)
            forbidden = [
                group
                for group in (topics.consumer_group, topics.owner_group, topics.replay_group)
                if not _may_read(admin, group)
            ]
        except ValueError:  # an operation that kafka-python has no name for
            return []
        finally:
            admin.close()
    if forbidden:
        lines.append(causes.missing_right(broker.servers, broker.security, "Read", [("group", g) for g in forbidden]))
    return lines


def _of_topics(broker: Broker, wanted: Mapping[str, tuple[str, ...]], described: Mapping[str, object]) -> list[str]:
    lines = []
    for operation in ("Read", "Write"):
        lacking = [
            ("topic", topic)
            for topic, operations in wanted.items()
            if operation in operations and not _allows(described.get(topic), operation)
        ]
        if lacking:
            lines.append(causes.missing_right(broker.servers, broker.security, operation, lacking))
    return lines


def _allows(operations: object, operation: str) -> bool:
    """Return whether a list of operations has one; a broker that does not say sends none."""
    return not isinstance(operations, list) or not operations or operation.upper() in operations


def _may_read(admin: object, group: str) -> bool:
    try:
        described = admin.describe_groups([group], include_authorized_operations=True)  # type: ignore[attr-defined]
    except GroupAuthorizationFailedError:
        return False
    except BrokerResponseError:
        return True  # a group that does not exist yet says no more
    return _allows(described[group].get("authorized_operations"), "Read")
