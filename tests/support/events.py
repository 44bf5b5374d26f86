"""Events that tests publish: prediction n, and feedback n about it."""

import uuid
from datetime import datetime
from typing import TypeVar

from schemas.events import FeedbackData, FeedbackReceived, PredictionData, PredictionMade, utc_now
from serving.http.feedback_values import serving_source
from serving.messaging.publisher import Outgoing, Topics


def pid(n: int) -> str:
    """The id of prediction n."""
    return str(uuid.UUID(int=n, version=4))


def fid(n: int) -> str:
    """The id of feedback n."""
    return str(uuid.UUID(int=1000 + n, version=4))


def prediction(
    n: int, *, version: str = "v1", label: str = "a", text: str | None = None, time: datetime | None = None
) -> PredictionMade:
    data = PredictionData(
        prediction_id=pid(n),
        model_name="m",
        model_version=version,
        generation=1,
        text=text or f"text {n}",
        label=label,
        confidence=0.5,
        metadata={"channel": "ios"},
    )
    return PredictionMade(source="test", subject=pid(n), time=time or utc_now(), data=data)


def feedback(n: int, *, time: datetime | None = None, **changes: object) -> FeedbackReceived:
    wanted = {"feedback_id": fid(n), "prediction_id": pid(n), "model_name": "m", "kind": "correction", "value": "b"}
    data = FeedbackData.model_validate(wanted | changes)
    return FeedbackReceived(source="test", subject=data.prediction_id, time=time or utc_now(), data=data)


Given = TypeVar("Given", PredictionMade, FeedbackReceived)


def named(event: Given, model_name: str) -> Given:
    """The event as that model's serving would write it."""
    data = event.data.model_copy(update={"model_name": model_name})
    return event.model_copy(update={"data": data, "source": serving_source(model_name)})


def outgoing(topics: Topics, event: PredictionMade | FeedbackReceived) -> Outgoing:
    name = topics.feedback.removesuffix(".feedback")
    if isinstance(event, PredictionMade):
        return Outgoing(topics.predictions, event.subject.encode(), named(event, name).model_dump_json().encode())
    return Outgoing(topics.feedback, event.subject.encode(), named(event, name).model_dump_json().encode())
