"""What happened, as messages: a prediction was made, feedback was received, a model was promoted.

Turns Python values into CloudEvents 1.0 (structured JSON) and back. Serving builds and publishes them, the feedback
consumer reads them. It deliberately does not know Kafka, Delta or HTTP.

Every event is frozen, keyword-only and stamped in aware UTC. Fields may be added, never changed: a reader ignores what
it does not know, so a producer may be a version ahead.
Source of the envelope: CloudEvents specification 1.0, JSON event format.
"""

import os
import time
import uuid
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

FeedbackKind = Literal["correction", "rating", "score", "comment", "retract"]
FeedbackValue = str | float | list[str]
# What JSON may hold where a label is wanted; serving/http/feedback_values.py turns it into a FeedbackValue or refuses it.
GivenValue = str | bool | int | float | list[str | bool | int | float]


def new_id() -> str:
    """A fresh UUIDv7 (RFC 9562, §5.7): 48 bits of Unix milliseconds, then random bits, so that ids sort by time."""
    stamp = time.time_ns() // 1_000_000
    random_bits = int.from_bytes(os.urandom(10))
    value = (
        (stamp & (1 << 48) - 1) << 80 | 0x7 << 76 | (random_bits >> 68) << 64 | 0b10 << 62 | random_bits & (1 << 62) - 1
    )
    return str(uuid.UUID(int=value))


def utc_now() -> datetime:
    """The time now, in aware UTC."""
    return datetime.now(UTC)


class Frozen(BaseModel):
    """A value that crosses a process boundary: immutable, and tolerant of fields added by a later version."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class PredictionData(Frozen):
    """One answered item. `text` and `metadata` are already anonymised; `user` is a keyed HMAC."""

    prediction_id: str
    model_name: str
    model_version: str
    generation: int
    task: str = "classification"
    text: str
    label: str = Field(description="canonical text of what was answered (schemas/targets.py)")
    confidence: float = Field(
        ge=0, le=1, description="calibrated probability of `label`; of a number: what its interval promises"
    )
    probabilities: dict[str, float] = Field(default_factory=dict, description="by label; none of a number")
    user: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    audit: bool = Field(default=False, description="marked by the keyed hash for the audit sample")


class FeedbackData(Frozen):
    """What one person said of one prediction."""

    feedback_id: Annotated[str, Field(min_length=1, max_length=128)]
    prediction_id: str
    model_name: str
    kind: FeedbackKind
    value: GivenValue
    user: str | None = None


class PromotionData(Frozen):
    """A champion was set: by a round, by a person's approval, or by a rollback."""

    model_name: str
    model_version: str
    previous_version: str | None
    generation: int
    round_id: str | None = None
    actor: str


class Event(Frozen):
    """The CloudEvents envelope. `subject` is the prediction's id, or the promoted version."""

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(default_factory=new_id)
    source: str
    subject: str
    time: AwareDatetime = Field(default_factory=utc_now)
    datacontenttype: Literal["application/json"] = "application/json"


class PredictionMade(Event):
    """A champion answered one item."""

    type: Literal["ratchet.prediction.made.v1"] = "ratchet.prediction.made.v1"
    data: PredictionData


class FeedbackReceived(Event):
    """A person corrected, rated, scored, commented on or withdrew something about one prediction."""

    type: Literal["ratchet.feedback.received.v1"] = "ratchet.feedback.received.v1"
    data: FeedbackData


class ModelPromoted(Event):
    """The champion pointer moved."""

    type: Literal["ratchet.model.promoted.v1"] = "ratchet.model.promoted.v1"
    data: PromotionData


AnyEvent = Annotated[PredictionMade | FeedbackReceived | ModelPromoted, Field(discriminator="type")]
_any_event: TypeAdapter[PredictionMade | FeedbackReceived | ModelPromoted] = TypeAdapter(AnyEvent)


def parse_event(value: bytes) -> PredictionMade | FeedbackReceived | ModelPromoted:
    """Read one message. Raises `pydantic.ValidationError` (a `ValueError`) naming the field that is wrong."""
    return _any_event.validate_json(value)
