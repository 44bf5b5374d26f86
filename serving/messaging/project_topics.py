"""The topics of one project, made as its settings say.

Turns settings into topic ids. `ratchet up` calls it before it starts anything, the feedback consumer whenever it subscribes.
"""

from schemas.settings import Settings
from serving.messaging.connection import Broker
from serving.messaging.publisher import Topics, ensure_topics


def make_topics(settings: Settings, broker: Broker) -> dict[str, str]:
    """Create the topics that are missing and return name -> topic_id of all four. Raises BrokerUnavailable."""
    kafka = settings.kafka
    return ensure_topics(
        broker,
        Topics.of(settings.stream_name).names(),
        partitions=kafka.partitions,
        replication_factor=kafka.replication_factor,
        timeout_s=kafka.publish_timeout_s,
    )
