"""Parse a message's bytes into a validated event, and turn an event with its position into a row of SCHEMAS.

The feedback consumer calls it for every message.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeVar

import orjson
from pydantic import ValidationError

from schemas.cloudevents import UnreadableMode, structured
from schemas.events import Event, FeedbackReceived, PredictionMade, parse_event
from serving.messaging.publisher import MAX_MESSAGE_BYTES

# A producer's clock may be this far ahead of the consumer's; later times are replaced.
CLOCK_AHEAD = timedelta(minutes=5)
YEARS = range(1970, 2200)  # representable in every store behind Feast


class BadMessage(ValueError):
    """A message that no retry makes readable; the error text has the reason, without the message's content."""


Stored = TypeVar("Stored", bound=Event)


def read_event(
    value: bytes | None, table: str, headers: Sequence[tuple[str, bytes | None]] = ()
) -> PredictionMade | FeedbackReceived:
    """Return the event of a message for `table` ("predictions" or "feedback"), with values that every store can represent.

    Raises BadMessage.
    """
    expected = PredictionMade if table == "predictions" else FeedbackReceived
    if value is None:
        raise BadMessage("a tombstone where an event belongs")
    if len(value) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"{len(value)} bytes, {MAX_MESSAGE_BYTES} at most")
    try:
        event = parse_event(structured(value, headers))
    except UnreadableMode as error:
        raise BadMessage(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"].startswith("union_tag"):
            raise BadMessage(f"type: missing or unknown: expected {expected.model_fields['type'].default}") from None
        raise BadMessage(f"{'.'.join(map(str, first['loc'])) or 'event'}: {first['msg']}") from None
    if not isinstance(event, expected):
        raise BadMessage(f"{event.type} does not belong among {table}")
    if event.time.year not in YEARS:
        raise BadMessage(f"time: the year {event.time.year}")
    if isinstance(event, PredictionMade) and abs(event.data.generation) >= 2**63:
        raise BadMessage("data.generation: beyond 64 bits")
    if (
        isinstance(event, FeedbackReceived)
        and isinstance(event.data.value, float)
        and not math.isfinite(event.data.value)
    ):
        raise BadMessage("data.value: not a finite number")
    return event


def on_our_clock(event: Stored, now: datetime) -> Stored:
    """Return the event, with the time `now` if its own is in the future: there it would stay the newest for ever."""
    return event.model_copy(update={"time": now}) if event.time > now + CLOCK_AHEAD else event


def row_of(
    event: PredictionMade | FeedbackReceived, stored_at: datetime, topic_id: str, partition: int, offset: int
) -> dict[str, object]:
    """Return a row of the event log, with its position."""
    row = _prediction_row(event) if isinstance(event, PredictionMade) else _feedback_row(event)
    row["event_timestamp"] = event.time
    row["created_timestamp"] = stored_at
    row["topic_id"] = topic_id
    row["partition"] = partition
    row["offset"] = offset
    return row


def _prediction_row(event: PredictionMade) -> dict[str, object]:
    data = event.data
    return {
        "prediction_id": data.prediction_id,
        "model_version": data.model_version,
        "generation": data.generation,
        "text": data.text,
        "predicted_label": data.label,
        "confidence": data.confidence,
        "probabilities": orjson.dumps(data.probabilities).decode(),
        "user": data.user,
        "metadata": orjson.dumps(data.metadata).decode(),
        "audit": data.audit,
    }


def _feedback_row(event: FeedbackReceived) -> dict[str, object]:
    data = event.data
    return {
        "feedback_id": data.feedback_id,
        "prediction_id": data.prediction_id,
        "kind": data.kind,
        "value": orjson.dumps(data.value).decode(),
        "user": data.user,
    }
