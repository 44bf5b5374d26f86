"""One micro-batch: what was polled, sorted into rows, positions and messages that nobody can read.

Turns messages into what the consumer stores. It is pure: the consumer calls it, and whatever it raises is the fault of a
message. It deliberately does no I/O.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa

from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.event_rows import BadMessage, on_our_clock, read_event, row_of
from schemas.events import FeedbackReceived, PredictionMade
from serving.messaging.publisher import Message, Topics
from serving.registry.exclusions import Excluded


@dataclass(frozen=True)
class Source:
    """Where messages come from: the topics, and their ids as of the subscription."""

    topics: Topics
    ids: Mapping[str, str]

    def table(self, topic: str) -> str:
        """The log's table of a topic."""
        return "predictions" if topic == self.topics.predictions else "feedback"

    def place(self, topic: str, partition: int) -> str:
        """'<topic_id>/<partition>'."""
        return f"{self.ids[topic]}/{partition}"


@dataclass(kw_only=True)
class MicroBatch:
    """What becomes of the messages of one batch; `said` are feedback events by place."""

    rows: dict[str, pa.Table] = field(default_factory=dict)
    positions: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in SCHEMAS})
    predictions: list[PredictionMade] = field(default_factory=list)
    said: list[tuple[str, FeedbackReceived]] = field(default_factory=list)
    bad: list[tuple[Message, str]] = field(default_factory=list)
    from_the_future: int = 0
    left_out: int = 0


def sort_out(
    messages: Sequence[Message],
    source: Source,
    now: datetime,
    read: Callable[[bytes | None, str], PredictionMade | FeedbackReceived] = read_event,
    refused: str | None = None,
    *,
    check: Callable[[FeedbackReceived], FeedbackReceived] = lambda event: event,
    excluded: Excluded | None = None,
) -> MicroBatch:
    """Read and check messages.

    Args:
        messages: in order per partition.
        source: where they come from.
        now: the time of storing them.
        read: the event in a message's bytes.
        refused: why none of them can be stored, if that is known already.
        check: feedback as it is stored; raises BadMessage.
        excluded: what must not be stored; such messages leave no trace but their position.

    """
    batch = MicroBatch()
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in SCHEMAS}
    for message in messages:
        table, place = source.table(message.topic), source.place(message.topic, message.partition)
        batch.positions[table][place] = message.offset
        try:
            if refused is not None:
                raise BadMessage(refused)
            claimed = read(message.value, table)
            if isinstance(claimed, FeedbackReceived):
                claimed = check(claimed)
        except BadMessage as error:
            batch.bad.append((message, str(error)))
            continue
        event = on_our_clock(claimed, now)
        batch.from_the_future += event is not claimed
        if excluded is not None and excluded.covers(event):
            batch.left_out += 1
            continue
        rows[table].append(row_of(event, now, source.ids[message.topic], message.partition, message.offset))
        if isinstance(event, PredictionMade):
            batch.predictions.append(event)
        else:
            batch.said.append((place, event))
    batch.rows = {name: pa.Table.from_pylist(rows[name], schema=schema) for name, schema in SCHEMAS.items()}
    return batch
