"""Micro-batches: polled messages as rows, positions and bad messages.

Turns messages into what the consumer stores. It does no I/O, so any error that it raises comes from a message.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa

from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.event_rows import BadMessage, on_our_clock, read_event, row_of
from schemas.events import FeedbackReceived, PredictionMade
from serving.messaging.publisher import Message, Topics
from serving.messaging.record_batches import Unreadable
from serving.registry.exclusions import Excluded

Stored = PredictionMade | FeedbackReceived
Read = Callable[[bytes | None, str, Sequence[tuple[str, bytes | None]]], Stored]
UNREADABLE = "cannot be decoded: "  # begins the reason of such a message's dead letter


@dataclass(frozen=True)
class Source:
    """The topics that messages come from, and the topics' ids as of the subscription.

    `incarnations` counts how often the log of a topic's partition was rewritten (continuity.py).
    """

    topics: Topics
    ids: Mapping[str, str]
    incarnations: dict[tuple[str, int], int] = field(default_factory=dict)

    def table(self, topic: str) -> str:
        """Return the event log's table of a topic."""
        return "predictions" if topic == self.topics.predictions else "feedback"

    def partition_key(self, topic: str, partition: int) -> str:
        """Return '<topic_id>/<partition>', which no recreated topic shares."""
        return f"{self.topic_id(topic, partition)}/{partition}"

    def topic_id(self, topic: str, partition: int) -> str:
        """Return the id under which a partition's events are stored."""
        return incarnation_of(self.ids[topic], self.incarnations.get((topic, partition), 0))


def incarnation_of(topic_id: str, n: int) -> str:
    """Return a topic's id after the log of a partition was rewritten `n` times."""
    return f"{topic_id}~{n}" if n else topic_id


@dataclass(kw_only=True)
class MicroBatch:
    """The rows, positions and bad messages of one batch; `feedback` are events with their partition key."""

    rows: dict[str, pa.Table] = field(default_factory=dict)
    positions: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in SCHEMAS})
    predictions: list[PredictionMade] = field(default_factory=list)
    feedback: list[tuple[str, FeedbackReceived]] = field(default_factory=list)
    bad: list[tuple[Message, str]] = field(default_factory=list)
    from_the_future: int = 0
    left_out: int = 0


def micro_batch_of(
    messages: Sequence[Message],
    source: Source,
    now: datetime,
    read: Read = read_event,
    refused: str | None = None,
    *,
    check: Callable[[Stored], Stored] = lambda event: event,
    excluded: Excluded | None = None,
    stored_before: Mapping[tuple[str, int, int], set[str]] | None = None,
) -> MicroBatch:
    """Return the micro-batch of messages.

    Args:
        messages: in order within each partition.
        source: the topics of the messages.
        now: the time of storing them.
        read: returns the event in a message's bytes and headers; raises BadMessage.
        refused: the reason why none of them can be stored, if that is known.
        check: returns the event as it is stored; raises BadMessage.
        excluded: erased events; of them only the position is stored.
        stored_before: ids of the events that are stored at (topic, partition, offset) under an earlier incarnation.

    """
    batch = MicroBatch()
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in SCHEMAS}
    for message in messages:
        table, key = source.table(message.topic), source.partition_key(message.topic, message.partition)
        batch.positions[table][key] = message.offset
        try:
            if refused is not None:
                raise BadMessage(refused)
            if isinstance(message.value, Unreadable):
                raise BadMessage(f"{UNREADABLE}{message.value.reason}")
            claimed = check(read(message.value, table, message.headers))
        except BadMessage as error:
            batch.bad.append((message, str(error)))
            continue
        event = on_our_clock(claimed, now)
        batch.from_the_future += event is not claimed
        known = stored_before.get((message.topic, message.partition, message.offset)) if stored_before else None
        if (known and _event_id(event) in known) or (excluded is not None and excluded.covers(event)):
            batch.left_out += 1
            continue
        rows[table].append(
            row_of(event, now, source.topic_id(message.topic, message.partition), message.partition, message.offset)
        )
        if isinstance(event, PredictionMade):
            batch.predictions.append(event)
        else:
            batch.feedback.append((key, event))
    batch.rows = {name: pa.Table.from_pylist(rows[name], schema=schema) for name, schema in SCHEMAS.items()}
    return batch


def _event_id(event: PredictionMade | FeedbackReceived) -> str:
    return event.data.prediction_id if isinstance(event, PredictionMade) else event.data.feedback_id
