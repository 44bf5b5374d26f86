"""Watch of a project's topics: made, the same as before, this project's, and configured to keep every event.

Turns the broker's topics into a `Source`, or into an error or a lasting trouble. The feedback consumer calls it when it
subscribes, every two seconds and before it stores a batch.
"""

import logging
import os
import time
from collections.abc import Callable

from schemas.settings import Settings
from services.ingestion.micro_batch import Source
from services.ingestion.troubles import TOPIC, Troubles
from serving.messaging.connection import Broker
from serving.messaging.project_topics import make_topics
from serving.messaging.publisher import Topics, topic_ids
from serving.messaging.topic_checks import claim, topic_faults
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.feedback_consumer")

INSPECT_SECONDS = 60.0


class TopicsRecreated(RuntimeError):
    """A topic was recreated since the subscription: its offsets begin at zero."""


class TopicWatch:
    """Looks after the topics of one project. The embedded broker's are nobody else's, so they are not inspected."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        topics: Topics,
        registry: Registry,
        troubles: Troubles,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._broker, self._topics = settings, broker, topics
        self._timeout_s = settings.kafka.publish_timeout_s
        self._registry, self._troubles, self._monotonic = registry, troubles, monotonic
        self._embedded = os.environ.get("RATCHET_EMBEDDED_BROKER") == "1"
        self._inspect_at = 0.0
        self._faults: dict[str, str] = {}
        self._source = Source(topics, {})

    def begin(self) -> Source:
        """Create missing topics and return them with their ids. Raises BrokerUnavailable, ForeignTopics."""
        ids = make_topics(self._settings, self._broker)
        self._inspect_at = 0.0
        self._inspect()
        self._source = Source(self._topics, ids)
        return self._source

    def check(self) -> None:
        """Raise TopicsRecreated if a topic has another id than at `begin`; inspect the topics if that is due."""
        if topic_ids(self._broker, self._topics.names(), timeout_s=self._timeout_s) != self._source.ids:
            raise TopicsRecreated("the broker's topics were recreated: reading them from the beginning")
        self._inspect()

    def _inspect(self) -> None:
        if self._embedded or self._monotonic() < self._inspect_at:
            return
        claim(self._broker, self._topics, self._registry.project_id())
        faults = topic_faults(self._broker, self._topics, timeout_s=self._timeout_s)
        self._troubles.show(TOPIC, faults)
        for topic, fault in faults.items():
            if self._faults.get(topic) != fault:
                log.error("cannot keep every event: %s %s", topic, fault)
        self._faults = faults
        self._inspect_at = self._monotonic() + INSPECT_SECONDS
