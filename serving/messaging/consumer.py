"""Reading from Kafka: a consumer group's subscription, and the backlog of a topic.

Turns topics into messages in order per partition. The feedback consumer subscribes; the replay of dead letters reads a
backlog. A subscription ignores the offsets that its group has committed: the event log decides where to read on.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError
from kafka.structs import MemberState, OffsetAndMetadata

from serving.messaging.causes import Right
from serving.messaging.connection import Broker, BrokerUnavailable, connected, reaching
from serving.messaging.membership import OnAssigned, await_joins, is_settled
from serving.messaging.publisher import Message, topic_ids
from serving.messaging.record_batches import FetchFailed, Unreadable, read_robustly

log = logging.getLogger("ratchet.subscriptions")

BACKLOG_SECONDS = 10.0
POLL_RECORDS, POLL_BYTES = 2000, 32 << 20  # of one poll, at most
ALLOTMENT = 100  # records decoded before POLL_BYTES is looked at again: a compressed record may expand to megabytes
FETCH_AGAIN_S = 1.0  # before an offset that the broker cannot read is fetched again
FETCH_ATTEMPTS = 3  # of damaged records, before they are passed over: the network may have damaged them on the way
NEW_PARTITIONS_S = (
    30.0  # until partitions that somebody adds to a topic are read; kafka-python's default is five minutes
)
FETCH_MS = 200  # the broker may hold a fetch open this long: an idle subscription learns of the end with this delay
FETCH_BYTES = 256 << 10  # what the broker waits for until then: many small fetches cost the consumer twice the CPU


@dataclass(frozen=True)
class OutOfRange:
    """A partition that does not hold the offset to read: its log begins after it, ends before it, or was rewritten."""

    topic: str
    partition: int
    wanted: int
    first: int
    end: int

    @property
    def expired(self) -> bool:
        """Return whether the records up to the log's start are gone; otherwise the end of the log is."""
        return self.first >= self.wanted


class Subscription:
    """One member of a consumer group. At each assignment `start_at(topic, partition)` returns the offset to read from.

    `out_of_range` is called with a partition that does not hold the offset to read, and returns the offset to read instead.
    Partitions that somebody adds to a topic are read within `new_partitions_s` seconds.
    `assignments` counts the assignments; at each, the caller must drop polled messages that it has not stored. The offsets
    that the group has committed are only a hint for lag tools. Not thread-safe.
    """

    def __init__(
        self,
        broker: Broker,
        topics: Sequence[str],
        *,
        group: str,
        start_at: Callable[[str, int], int],
        out_of_range: Callable[[OutOfRange], int] = lambda gap: gap.first,
        new_partitions_s: float = NEW_PARTITIONS_S,
    ) -> None:
        self._broker = broker
        self._start_at = start_at
        self._out_of_range = out_of_range
        self._reassigned = False
        self._attempts: Counter[tuple[str, int, int]] = Counter()
        self.assignments = 0
        self._topics = tuple(topics)
        self._right = Right("Read", self._topics, group)
        with reaching(broker, self._right):
            self._consumer = connected(
                KafkaConsumer,
                broker,
                group_id=group,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                auto_offset_reset="none",  # a jump would hide a loss: `out_of_range` decides
                isolation_level="read_committed",
                session_timeout_ms=6000,
                heartbeat_interval_ms=1000,
                fetch_max_wait_ms=FETCH_MS,
                fetch_min_bytes=FETCH_BYTES,
                request_timeout_ms=10_000,
                max_poll_records=POLL_RECORDS,
                metadata_max_age_ms=int(new_partitions_s * 1000),
                bootstrap_timeout_ms=5000,
            )
            read_robustly(self._consumer._fetcher, self._fetch_again)
            await_joins(self._consumer._coordinator)
            self._consumer.subscribe(list(topics), listener=OnAssigned(self._on_assigned))

    def poll(self, timeout_s: float) -> list[Message]:
        """Return the messages that arrive within `timeout_s`, in order per partition. Raises BrokerUnavailable.

        Of records that cannot be decoded there is one message for the smallest unit, whose value is `Unreadable`.
        """
        messages: list[Message] = []
        away: Exception | None = None
        with reaching(self._broker, self._right):
            try:
                messages = self._polled(int(timeout_s * 1000))
            except FetchFailed as error:
                messages = self._passed_over(error)
            except (OffsetOutOfRangeError, LogTruncationError) as error:
                away = error
        if away is not None and not self._reassigned:
            self._seek_into_range(away)
        if self._reassigned:
            # Seek here, not in the callback: that runs on the network thread, which must not wait for a disk. `start_at`
            # is outside `reaching`: its errors are not the broker's.
            for topic_partition in self._consumer.assignment():
                start = self._start_at(topic_partition.topic, topic_partition.partition)
                with reaching(self._broker):
                    self._consumer.seek(topic_partition, start)
            self._reassigned = False
            self.assignments += 1
            return []
        return messages

    def _polled(self, timeout_ms: int) -> list[Message]:
        """Poll in allotments, so that records that expand in memory stay within POLL_BYTES."""
        messages: list[Message] = []
        size = 0
        while len(messages) < POLL_RECORDS and size < POLL_BYTES and not self._reassigned:
            try:
                polled = self._consumer.poll(timeout_ms=0 if messages else timeout_ms, max_records=ALLOTMENT)
            except KafkaError:
                if messages:
                    break  # the next poll raises it again, unless it has passed
                raise
            if not polled:
                break
            new = [_message(record) for records in polled.values() for record in records]
            size += sum(len(message.value or b"") for message in new)
            messages += new
        return messages

    def _fetch_again(self, topic: str, partition: int, offset: int) -> bool:
        """Return whether damaged records may be fetched again, and count the attempt."""
        self._attempts[topic, partition, offset] += 1
        return self._attempts[topic, partition, offset] < FETCH_ATTEMPTS

    def _passed_over(self, error: FetchFailed) -> list[Message]:
        """Seek to fetch again what could not be fetched; if that has failed often enough, return a message in its place."""
        where, before = (error.topic, error.partition, error.offset), (error.topic, error.partition, error.offset - 1)
        # After an offset that was passed over, the next one is at once: it lies in the same damage.
        again = error.counted or (self._attempts[before] < FETCH_ATTEMPTS and self._fetch_again(*where))
        self._consumer.seek(TopicPartition(error.topic, error.partition), error.offset + (not again))
        if again:
            if not error.counted:
                time.sleep(FETCH_AGAIN_S)  # what ails the broker may pass
            return []
        self._attempts[where] = FETCH_ATTEMPTS
        return [Message(*where, None, Unreadable.of(b"", error.reason), ())]

    def _seek_into_range(self, error: Any) -> None:
        """Seek to where `out_of_range` says, in the partitions that the error names. Raises what `out_of_range` raises."""
        given = error.args[0] if error.args else None
        for partition in given if isinstance(given, dict) else self._consumer.assignment():
            with reaching(self._broker):
                wanted = int(self._consumer.position(partition, timeout_ms=3000) or 0)
                first = int(self._consumer.beginning_offsets([partition], timeout_ms=5000)[partition])
                end = int(self._consumer.end_offsets([partition], timeout_ms=5000)[partition])
            # Outside of `reaching`: its errors are not the broker's.
            start = self._out_of_range(OutOfRange(partition.topic, partition.partition, wanted, first, end))
            with reaching(self._broker):
                self._consumer.seek(partition, start)

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit the last offsets to the group, for lag tools. A failure is logged only: the event log has the positions."""
        wanted = {TopicPartition(*p): OffsetAndMetadata(last + 1, "", -1) for p, last in offsets.items()}
        try:
            self._consumer.commit(wanted, timeout_ms=3000)
        except (KafkaError, OSError) as error:
            log.info("offsets not committed: %s", error)

    def lag(self) -> int | None:
        """Return the number of messages not yet polled, as of the last fetches; None before the first fetch or a new join.

        ListOffsets is not used: the embedded broker returns the start of the last batch.
        """
        with reaching(self._broker):
            ends = {p: self._consumer.highwater(p) for p in self._consumer.assignment()}
            if None in ends.values() or not is_settled(self._consumer, self._topics):
                return None
            return sum(
                max(0, int(end) - int(self._consumer.position(p, timeout_ms=3000) or 0)) for p, end in ends.items()
            )

    def positions(self) -> dict[str, int]:
        """Return the offset to read next of each assigned partition, by '<topic>/<partition>'; nothing if it is not known."""
        with contextlib.suppress(BrokerUnavailable), reaching(self._broker):
            at = {p: self._consumer.position(p, timeout_ms=100) for p in self._consumer.assignment()}
            return {f"{p.topic}/{p.partition}": int(offset) for p, offset in at.items() if offset is not None}
        return {}

    def partitions(self, topic: str) -> set[int]:
        """Return the assigned partitions of a topic."""
        return {int(p.partition) for p in self._consumer.assignment() if p.topic == topic}

    def close(self) -> None:
        """Leave the group if joining is complete; otherwise only disconnect.

        A member that leaves while it joins blocks the embedded broker's group for ever (seen with Tansu). A silent member
        is expelled after the session timeout, here as on Kafka.
        """
        with contextlib.suppress(Exception):
            if self._consumer.group_metadata().state == MemberState.STABLE:
                self._consumer.close(autocommit=False, timeout_ms=2000)
            else:
                self._consumer._client.close()

    def _on_assigned(self, assigned: Any) -> None:
        for topic_partition in assigned:  # the offset is replaced by `poll`; without one, kafka-python raises
            self._consumer.seek(topic_partition, 0)
        self._reassigned = True


class Backlog:
    """The messages of a topic that `reader`, a group's name, has not committed. One process at a time; no group is joined."""

    def __init__(self, broker: Broker, topic: str, *, reader: str) -> None:
        self._broker = broker
        self._topic = topic
        self._reader = reader
        self._right = Right("Read", (topic,), reader)
        self._consumer: Any = None

    def __enter__(self) -> "Backlog":
        topic_ids(self._broker, [self._topic], timeout_s=5)  # a topic without the right to describe it looks like none
        with reaching(self._broker, self._right):
            self._consumer = connected(
                KafkaConsumer,
                self._broker,
                group_id=self._reader,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                fetch_max_wait_ms=FETCH_MS,
                request_timeout_ms=10_000,
                bootstrap_timeout_ms=5000,
            )
            read_robustly(self._consumer._fetcher, lambda *_: False)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._consumer.close(autocommit=False, timeout_ms=2000)

    def batches(self) -> Iterator[list[Message]]:
        """Yield the backlog in order per partition, up to the ends that the first fetches report. Raises BrokerUnavailable."""
        with reaching(self._broker, self._right):
            numbers = self._consumer.partitions_for_topic(self._topic) or ()
            partitions = [TopicPartition(self._topic, number) for number in numbers]
            self._consumer.assign(partitions)
            ends: dict[TopicPartition, int] = {}
            deadline = time.monotonic() + BACKLOG_SECONDS
            while any(p not in ends or self._consumer.position(p, timeout_ms=3000) < ends[p] for p in partitions):
                polled = self._consumer.poll(timeout_ms=FETCH_MS)
                known = ((p, self._consumer.highwater(p)) for p in partitions)
                ends = {p: int(end) for p, end in known if end is not None} | ends
                messages = [
                    _message(record)
                    for partition, records in polled.items()
                    for record in records
                    if record.offset < ends[partition]
                ]
                if messages:
                    yield messages
                    deadline = time.monotonic() + BACKLOG_SECONDS
                elif time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"broker {self._broker}: no message of {self._topic} arrived in {BACKLOG_SECONDS} s"
                    )

    def done(self, messages: Sequence[Message]) -> None:
        """Commit these messages for the reader. Raises BrokerUnavailable."""
        last = {TopicPartition(m.topic, m.partition): m.offset for m in messages}
        with reaching(self._broker, self._right):
            offsets = {partition: OffsetAndMetadata(offset + 1, "", -1) for partition, offset in last.items()}
            self._consumer.commit(offsets, timeout_ms=5000)


def _message(record: Any) -> Message:
    return Message(record.topic, record.partition, record.offset, record.key, record.value, tuple(record.headers))
