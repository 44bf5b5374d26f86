"""Check the topics of a Kafka cluster before anything uses them: whose they are, and whether they keep every event.

Turns a broker into the reason why its topics are refused, and the faults with which they are used. `ratchet up` and
`ratchet doctor` call it; the feedback consumer checks the same every minute. The embedded broker is not checked.
"""

from schemas.settings import Settings
from serving.messaging.connection import Broker
from serving.messaging.publisher import Topics
from serving.messaging.topic_checks import COMPACTED, foreign, owner, topic_faults
from serving.registry.registry import Registry


def refusal(settings: Settings, registry: Registry, broker: Broker, topics: Topics) -> str | None:
    """Return why the topics are refused, with the way out; None if they are not. Raises BrokerUnavailable."""
    known = owner(broker, topics)
    if known is not None and known != registry.project_id():
        return foreign(broker, topics, known)
    faults = topic_faults(broker, topics, timeout_s=settings.kafka.publish_timeout_s)
    return next((f"{topic} {fault}" for topic, fault in faults.items() if fault.startswith(COMPACTED)), None)
