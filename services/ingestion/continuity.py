"""Continuity: is what the broker holds the continuation of what is stored?

Turns a partition's stored position into the offset to read from, and a partition that does not hold it into a counted loss.
The feedback consumer calls it at each assignment, for the first message after it and when an offset is out of range.

Two things happen to a log. Its start passes the stored position (a retention shorter than the downtime): the offsets between
are lost and counted. Or its end falls behind (a broker restored from an older disk, an unclean election): the offsets from
there on are given to other events, which the event log would take for stored. So the partition gets a new name,
'<topic_id>~1/<partition>', as if its topic had been recreated, and is read again from its start. Events that are stored at the
same offset under an earlier name are left out.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.feature_store.event_log import SCHEMAS, EventLog
from pipelines.feature_store.positions import column_at
from services.ingestion.micro_batch import Source, incarnation_of
from services.ingestion.stored_positions import start_of
from services.ingestion.troubles import EXPIRED, REWRITTEN, Troubles
from serving.messaging.consumer import OutOfRange
from serving.messaging.publisher import Message
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.feedback_consumer")


class LogRewritten(RuntimeError):
    """A partition's log ends before the stored position, or holds other events up to it: read it again under a new name."""


@dataclass
class _Expected:
    """The stored position of a partition whose message is compared when it arrives."""

    table: str
    offset: int


class Continuity:
    """Compares one consumer's partitions with the event log."""

    def __init__(self, registry: Registry, events: EventLog, troubles: Troubles) -> None:
        self._registry, self._events, self._troubles = registry, events, troubles
        self._expected: dict[tuple[str, int], _Expected] = {}

    def start_at(self, source: Source, topic: str, partition: int) -> int:
        """Return the offset to read from: that of the last stored message, which is compared before it is left out."""
        table = source.table(topic)
        source.incarnations[topic, partition] = self._incarnation(table, source.ids[topic], partition)
        first = start_of(self._registry, self._events, table, source.partition_key(topic, partition))
        self._expected.pop((topic, partition), None)
        if first == 0:
            return 0
        self._expected[topic, partition] = _Expected(table, first - 1)
        return first - 1

    def beyond_stored(self, source: Source, messages: Sequence[Message]) -> list[Message]:
        """Return the messages without those at the stored positions. Raises LogRewritten if one of those is another event."""
        if not self._expected:
            return list(messages)
        new = []
        for message in messages:
            where = (message.topic, message.partition)
            expected = self._expected.get(where)
            if expected is None or message.offset > expected.offset:
                self._expected.pop(where, None)
                new.append(message)
            elif message.offset == expected.offset:
                self._compare(source, message, expected)
        return new

    def out_of_range(self, source: Source, gap: OutOfRange) -> int:
        """Count what is lost and return the offset to read from. Raises LogRewritten."""
        topic, partition = gap.topic, gap.partition
        if not gap.expired:
            end = f"ends at offset {gap.end}, before the stored {gap.wanted}"
            self._rewrite(source, topic, partition, end)
        wanted = gap.wanted + ((topic, partition) in self._expected)  # the last stored message may be gone
        again = source.incarnations.get((topic, partition), 0) > 0 and wanted == 0  # stored under an earlier name
        if not again and (lost := gap.first - wanted) > 0:
            where = f"{topic}/{partition}"
            detail = f"offsets {wanted} to {gap.first - 1}"
            self._troubles.count(EXPIRED, where, lost, offset=gap.first - 1, detail=detail)
            reason = "retention deleted them before they were stored; raise retention.ms"
            log.error("cannot read %d messages of %s, %s: %s", lost, where, detail, reason)
        return gap.first

    def stored_before(self, source: Source, messages: Sequence[Message]) -> Mapping[tuple[str, int, int], set[str]]:
        """Return the ids of the events that earlier names of the messages' partitions hold at the same offsets."""
        stored_ids: dict[tuple[str, int, int], set[str]] = {}
        for (topic, partition), n in source.incarnations.items():
            offsets = [m.offset for m in messages if (m.topic, m.partition) == (topic, partition)] if n else []
            if offsets:
                names = [incarnation_of(source.ids[topic], earlier) for earlier in range(n)]
                table = source.table(topic)
                rows, ids = self._events.rows(table), "prediction_id" if table == "predictions" else "feedback_id"
                stored = column_at(rows, ids, names, partition, min(offsets), max(offsets))
                stored_ids |= {(topic, partition, offset): ids_at for offset, ids_at in stored.items()}
        return stored_ids

    def _compare(self, source: Source, message: Message, expected: _Expected) -> None:
        at, names = message.offset, [source.topic_id(message.topic, message.partition)]
        rows = self._events.rows(expected.table)
        stored = column_at(rows, "prediction_id", names, message.partition, at, at).get(at)
        value = message.value.lower() if message.value is not None else b""
        if stored and value and not any(name.encode() in value for name in stored):
            what = f"holds another event at the stored offset {at}"
            self._rewrite(source, message.topic, message.partition, what)

    def _rewrite(self, source: Source, topic: str, partition: int, what: str) -> None:
        """Begin the partition's next name. Raises LogRewritten."""
        where, n = f"{topic}/{partition}", source.incarnations.get((topic, partition), 0) + 1
        self._troubles.count(REWRITTEN, where, 1, detail=what)
        table, name = source.table(topic), f"{incarnation_of(source.ids[topic], n)}/{partition}"
        self._events.append(table, SCHEMAS[table].empty_table(), {name: -1})
        raise LogRewritten(
            f"the broker's log of {where} {what}: it was restored from an older copy, or an unclean election cut it; reading it "
            "again from its start (what only the newer copy held is lost at the broker, not here)"
        )

    def _incarnation(self, table: str, topic_id: str, partition: int) -> int:
        n = 0
        while self._events.is_known(table, f"{incarnation_of(topic_id, n + 1)}/{partition}"):
            n += 1
        return n
