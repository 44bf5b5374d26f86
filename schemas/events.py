"""Events: a prediction was made, feedback was received, a model was promoted.

Turns Python values into CloudEvents 1.0 (structured JSON) and back. Serving builds and publishes them; the feedback
consumer reads them. The envelope follows the CloudEvents specification 1.0, JSON event format.

Every event is frozen and has a time in aware UTC. Fields may be added, never changed: readers ignore unknown fields,
so a producer may be a version ahead.
"""

import os
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
)

# The largest value of a message in bytes, and what key, headers and Kafka's framing may add to it.
MAX_EVENT_BYTES, MAX_HEADER_BYTES = 4_000_000, 65_536
MAX_USER_CHARS, MAX_ID_CHARS, MAX_LABELS = 256, 128, 1000

FeedbackKind = Literal["correction", "rating", "score", "comment", "retract"]
FeedbackValue = str | float | list[str]
# What a client may send as `value`; serving/http/feedback_values.py turns it into a FeedbackValue or refuses it.
GivenValue = str | bool | int | float | list[str | bool | int | float]


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562, §5.7): 48 bits of Unix milliseconds, then random bits. Ids sort by time."""
    stamp = time.time_ns() // 1_000_000
    random_bits = int.from_bytes(os.urandom(10))
    value = (
        (stamp & (1 << 48) - 1) << 80 | 0x7 << 76 | (random_bits >> 68) << 64 | 0b10 << 62 | random_bits & (1 << 62) - 1
    )
    digits = f"{value:032x}"  # as uuid.UUID writes them, at a third of its cost
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def utc_now() -> datetime:
    """Return the current time in aware UTC."""
    return datetime.now(UTC)


class Frozen(BaseModel):
    """A value that crosses a process boundary: immutable; fields of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class PredictionData(Frozen):
    """One prediction. `text` and `metadata` are anonymised; `user` is a keyed HMAC."""

    prediction_id: str
    model_name: str
    model_version: str
    generation: int
    task: str = "classification"
    text: str
    label: str = Field(description="canonical text of the predicted target (schemas/targets.py)")
    confidence: float = Field(
        ge=0, le=1, description="calibrated probability of `label`; regression: the coverage of its interval"
    )
    probabilities: dict[str, float] = Field(
        default_factory=dict, description="label -> probability; empty in regression"
    )
    user: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    audit: bool = Field(default=False, description="in the audit sample, by a keyed hash")


class FeedbackData(Frozen):
    """One person's feedback on one prediction."""

    feedback_id: str = Field(
        min_length=1,
        max_length=MAX_ID_CHARS,
        description="the sender's idempotency key: events with the same prediction, user and id are one feedback. A UUID in "
        "either case is stored in lower case, anything else as a UUIDv8 of its keyed hash",
    )
    prediction_id: str = Field(description="UUID of the prediction, in either case; also the message's key")
    model_name: str = Field(description="model.name of the project; other names are refused")
    kind: FeedbackKind
    value: GivenValue = Field(
        description="correction: the right target. rating: up or down. score: a number from 0 to 1. comment: a text. retract: "
        "the feedback_id that its author withdraws. The AsyncAPI document has the types by task"
    )
    user: Annotated[str, Field(min_length=1, max_length=MAX_USER_CHARS)] | None = Field(
        None,
        description="the person, by the name that the app also sends over HTTP; stored as a pseudonym. Absent: anonymous; all "
        "anonymous people share one vote on a prediction",
    )


class PromotionData(Frozen):
    """A promotion by a round, an approval or a rollback."""

    model_name: str
    model_version: str
    previous_version: str | None
    generation: int
    round_id: str | None = None
    actor: str


def _require(schema: dict[str, Any]) -> None:
    """Name in a JSON Schema what CloudEvents requires: the defaults are for our own constructors."""
    schema["required"] = ["specversion", "type", "id", *schema["required"]]


class Event(Frozen):
    """The CloudEvents envelope. `subject` is the prediction's id, or the promoted version.

    An event without `id` or `time` gets a new id and the time at which it is read.
    """

    model_config = ConfigDict(json_schema_extra=_require)

    specversion: Literal["1.0"] = "1.0"
    traceparent: str | None = Field(
        None, description="W3C trace context of the request that made the event; absent without a trace"
    )
    id: str = Field(default_factory=new_id)
    source: str
    subject: str
    time: AwareDatetime = Field(default_factory=utc_now)
    datacontenttype: Literal["application/json"] = "application/json"

    @model_serializer(mode="wrap")
    def _without_absent_context(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        if self.traceparent is None:
            written.pop("traceparent", None)  # CloudEvents know no null
        return written


class PredictionMade(Event):
    """The champion answered one item."""

    type: Literal["ratchet.prediction.made.v1"] = "ratchet.prediction.made.v1"
    data: PredictionData


class FeedbackReceived(Event):
    """A person sent or retracted feedback on one prediction."""

    type: Literal["ratchet.feedback.received.v1"] = "ratchet.feedback.received.v1"
    data: FeedbackData


class ModelPromoted(Event):
    """Another version became the champion."""

    type: Literal["ratchet.model.promoted.v1"] = "ratchet.model.promoted.v1"
    data: PromotionData


AnyEvent = Annotated[PredictionMade | FeedbackReceived | ModelPromoted, Field(discriminator="type")]
_any_event: TypeAdapter[PredictionMade | FeedbackReceived | ModelPromoted] = TypeAdapter(AnyEvent)


def parse_event(value: bytes) -> PredictionMade | FeedbackReceived | ModelPromoted:
    """Return the event of one message. Raises `pydantic.ValidationError` (a `ValueError`) that names the wrong field."""
    return _any_event.validate_json(value)
