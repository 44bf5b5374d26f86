"""Topics on the cluster: their ids, and their creation with the cause if the cluster refuses it.

Turns names into topic ids. publisher.py calls it with an open admin client.
"""

import time
from collections.abc import Sequence
from typing import Any

from kafka.admin import NewTopic
from kafka.errors import (
    AuthorizationError,
    InvalidReplicationFactorError,
    NoError,
    RetriableError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from serving.messaging import causes
from serving.messaging.connection import Broker, BrokerRefused, BrokerUnavailable

VISIBLE_SECONDS = 0.1  # between two looks for a new topic
_CREATED = (NoError, TopicAlreadyExistsError)
_NOT_ALLOWED = TopicAuthorizationFailedError.errno


def ids_of(admin: Any, names: Sequence[str]) -> dict[str, str]:
    """Return name -> topic_id of the topics that exist. Raises TopicAuthorizationFailedError for those that may not be seen."""
    described = admin.describe_topics(list(names))
    if hidden := [topic["name"] for topic in described if topic["error_code"] == _NOT_ALLOWED]:
        raise TopicAuthorizationFailedError(set(hidden))
    return {topic["name"]: str(topic["topic_id"]) for topic in described if topic["error_code"] == 0}


def create(
    admin: Any, broker: Broker, topics: Sequence[NewTopic], names: Sequence[str], timeout_s: float
) -> dict[str, str]:
    """Create topics, wait until all `names` are visible, and return the ids of those that are.

    One that another process creates meanwhile is fine. A cluster shows new topics some time after it has confirmed them.
    Raises BrokerUnavailable with the cause.
    """
    deadline = time.monotonic() + timeout_s
    _create(admin, broker, topics, timeout_s)
    while len(ids := ids_of(admin, names)) < len(set(names)) and time.monotonic() < deadline:
        time.sleep(VISIBLE_SECONDS)
    return ids


def _create(admin: Any, broker: Broker, topics: Sequence[NewTopic], timeout_s: float) -> None:
    answer = admin.create_topics(topics, timeout_ms=int(timeout_s * 1000), raise_errors=False)
    failed = {t["name"]: t for t in answer["topics"] if for_code(t["error_code"]) not in _CREATED}
    for name, topic in failed.items():
        kind, reason = for_code(topic["error_code"]), topic.get("error_message") or ""
        if issubclass(kind, AuthorizationError):
            right = causes.missing_right(broker.servers, broker.security, "Create", [("topic", n) for n in failed])
            raise BrokerRefused(f"broker {broker} lacks {', '.join(failed)}: create them, or allow it: {right}")
        if kind is InvalidReplicationFactorError:
            wanted = f"kafka.replication_factor = {topics[0].replication_factor}"
            raise BrokerRefused(f"broker {broker}: {wanted} is more than it has nodes: {reason}")
        broken = BrokerUnavailable if issubclass(kind, RetriableError) else BrokerRefused
        raise broken(f"broker {broker} cannot create {name}: {reason or kind.__name__}")
