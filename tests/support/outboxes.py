"""Outboxes of model m, events to put into them, and a look at what reached the broker.

The tests of outbox*.py and the processes that they kill use them.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from schemas.events import FeedbackData, FeedbackReceived, PredictionData, PredictionMade, parse_event
from serving.messaging.connection import Broker
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import Topics, ensure_topics
from tests.support.kafka_tools import read_all

TOPICS = Topics.of("m")


def nothing_stored() -> dict[str, int]:
    return {}


def prediction(identity: str, text: str = "text") -> PredictionMade:
    data = PredictionData(
        prediction_id=identity,
        model_name="m",
        model_version="v",
        generation=1,
        text=text,
        label="a",
        confidence=0.5,
    )
    return PredictionMade(source="test", subject=identity, data=data)


def feedback(identity: str, value: str = "b") -> FeedbackReceived:
    data = FeedbackData(feedback_id=identity, prediction_id="p", model_name="m", kind="correction", value=value)
    return FeedbackReceived(source="test", subject="p", data=data)


def outbox(
    folder: Path,
    bootstrap: str,
    *,
    keep: Keep = Keep.UNTIL_STORED,
    stored: Callable[[], dict[str, int]] = nothing_stored,
    max_bytes: int = 100_000_000,
    observe: Callable[[int, int], None] | None = None,
) -> Outbox:
    made = Outbox(
        folder,
        broker=Broker(bootstrap),
        topics=TOPICS,
        keep=keep,
        stored_positions=stored,
        max_bytes=max_bytes,
        timeout_s=2,
        observe=observe,
    )
    made.start()
    return made


def make_topics(bootstrap: str) -> dict[str, str]:
    return ensure_topics(Broker(bootstrap), TOPICS.names(), partitions=2, replication_factor=1, timeout_s=30)


def published(bootstrap: str, topic: str) -> Counter[str]:
    """How often each event's subject-specific id lies in a topic."""
    found = Counter[str]()
    for record in read_all(bootstrap, topic):
        event = parse_event(record.value)
        found[event.data.feedback_id if isinstance(event, FeedbackReceived) else event.subject] += 1
    return found
