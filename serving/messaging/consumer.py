"""Reading from Kafka: a consumer group's subscription, and the backlog of a topic.

Turns topics into messages in order per partition. The feedback consumer subscribes; the replay of dead letters reads a
backlog. A subscription ignores the offsets that its group has committed: the event log decides where to read on.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import KafkaError
from kafka.structs import MemberState, OffsetAndMetadata

from serving.messaging.publisher import BrokerUnavailable, Message, connected, reaching

log = logging.getLogger("ratchet.subscriptions")

BACKLOG_SECONDS = 10.0
FETCH_MS = 200  # the broker may hold a fetch open this long: an idle subscription learns of the end with this delay


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    def __init__(self, assigned: Callable[[], None]) -> None:
        self._assigned = assigned

    def on_partitions_revoked(self, revoked: Any) -> None:
        pass

    def on_partitions_assigned(self, _assigned: Any) -> None:
        self._assigned()


class Subscription:
    """One member of a consumer group. At each assignment `start_at(topic, partition)` returns the offset to read from.

    `assignments` counts the assignments; at each, the caller must drop polled messages that it has not stored. The offsets
    that the group has committed are only a hint for lag tools. Not thread-safe.
    """

    def __init__(
        self, bootstrap: str, topics: Sequence[str], *, group: str, start_at: Callable[[str, int], int]
    ) -> None:
        self._bootstrap = bootstrap
        self._start_at = start_at
        self._reassigned = False
        self.assignments = 0
        with reaching(bootstrap):
            self._consumer = connected(
                KafkaConsumer,
                bootstrap,
                group_id=group,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                auto_offset_reset="earliest",
                session_timeout_ms=6000,
                heartbeat_interval_ms=1000,
                fetch_max_wait_ms=FETCH_MS,
                request_timeout_ms=10_000,
                max_poll_records=2000,
                bootstrap_timeout_ms=5000,
            )
            self._consumer.subscribe(list(topics), listener=_Listener(self._on_assigned))

    def poll(self, timeout_s: float) -> list[Message]:
        """Return the messages that arrive within `timeout_s`, in order per partition. Raises BrokerUnavailable."""
        with reaching(self._bootstrap):
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        if self._reassigned:
            # Seek here, not in the callback: that runs on the network thread, which must not wait for a disk. `start_at`
            # is outside `reaching`: its errors are not the broker's.
            for topic_partition in self._consumer.assignment():
                start = self._start_at(topic_partition.topic, topic_partition.partition)
                with reaching(self._bootstrap):
                    self._consumer.seek(topic_partition, start)
            self._reassigned = False
            self.assignments += 1
            return []
        return [_message(record) for records in polled.values() for record in records]

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit the last offsets to the group, for lag tools. A failure is logged only: the event log has the positions."""
        wanted = {TopicPartition(*p): OffsetAndMetadata(last + 1, "", -1) for p, last in offsets.items()}
        try:
            self._consumer.commit(wanted, timeout_ms=3000)
        except (KafkaError, OSError) as error:
            log.info("offsets not committed: %s", error)

    def lag(self) -> int | None:
        """Return the number of messages not yet polled, as of the last fetches; None before the first fetch.

        ListOffsets is not used: the embedded broker returns the start of the last batch.
        """
        with reaching(self._bootstrap):
            ends = {p: self._consumer.highwater(p) for p in self._consumer.assignment()}
            if None in ends.values():
                return None
            return sum(
                max(0, int(end) - int(self._consumer.position(p, timeout_ms=3000) or 0)) for p, end in ends.items()
            )

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

    def _on_assigned(self) -> None:
        self._reassigned = True


class Backlog:
    """The messages of a topic that `reader`, a group's name, has not committed. One process at a time; no group is joined."""

    def __init__(self, bootstrap: str, topic: str, *, reader: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._reader = reader
        self._consumer: Any = None

    def __enter__(self) -> "Backlog":
        with reaching(self._bootstrap):
            self._consumer = connected(
                KafkaConsumer,
                self._bootstrap,
                group_id=self._reader,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=FETCH_MS,
                request_timeout_ms=10_000,
                bootstrap_timeout_ms=5000,
            )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._consumer.close(autocommit=False, timeout_ms=2000)

    def batches(self) -> Iterator[list[Message]]:
        """Yield the backlog in order per partition, up to the ends that the first fetches report. Raises BrokerUnavailable."""
        with reaching(self._bootstrap):
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
                        f"broker {self._bootstrap}: no message of {self._topic} arrived in {BACKLOG_SECONDS} s"
                    )

    def done(self, messages: Sequence[Message]) -> None:
        """Commit these messages for the reader. Raises BrokerUnavailable."""
        last = {TopicPartition(m.topic, m.partition): m.offset for m in messages}
        with reaching(self._bootstrap):
            offsets = {partition: OffsetAndMetadata(offset + 1, "", -1) for partition, offset in last.items()}
            self._consumer.commit(offsets, timeout_ms=5000)


def _message(record: Any) -> Message:
    return Message(record.topic, record.partition, record.offset, record.key, record.value, tuple(record.headers))
