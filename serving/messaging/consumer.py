"""Reading from Kafka: one consumer-group subscription, and what waits in a topic.

Turns topics into messages in order per partition. The feedback consumer subscribes; the replay of dead letters reads a
backlog. It deliberately knows no event's meaning, and believes no offset that a group has committed.
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
FETCH_MS = 200  # how long the broker may hold a fetch open: an idle subscription knows the end at most this late


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    def __init__(self, assigned: Callable[[], None]) -> None:
        self._assigned = assigned

    def on_partitions_revoked(self, revoked: Any) -> None:
        pass

    def on_partitions_assigned(self, _assigned: Any) -> None:
        self._assigned()


class Subscription:
    """One member of a consumer group. `start_at` says, at each assignment, from which offset to read a partition.

    `assignments` counts them; at each, what was polled before and is not yet stored must be forgotten. Not thread-safe.
    The offsets that the group has committed are never believed: they are a hint for lag tools.
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
        """Messages that arrive within `timeout_s`, in order per partition. Raises BrokerUnavailable."""
        with reaching(self._bootstrap):
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        if self._reassigned:
            # Seek here, not in the callback: that one runs on the network thread, which must not wait for a disk.
            # What was polled before the seek is read again from where we say. What fails in `start_at` is no broker's fault.
            for place in self._consumer.assignment():
                start = self._start_at(place.topic, place.partition)
                with reaching(self._bootstrap):
                    self._consumer.seek(place, start)
            self._reassigned = False
            self.assignments += 1
            return []
        return [
            Message(r.topic, r.partition, r.offset, r.key, r.value, tuple(r.headers))
            for records in polled.values()
            for r in records
        ]

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Tell the group how far we are, for lag tools. A failure is only worth a line: the log holds the truth."""
        wanted = {TopicPartition(*p): OffsetAndMetadata(last + 1, "", -1) for p, last in offsets.items()}
        try:
            self._consumer.commit(wanted, timeout_ms=3000)
        except (KafkaError, OSError) as error:
            log.info("commit hint not taken: %s", error)

    def lag(self) -> int | None:
        """Messages not yet polled in our share, as of the last answers to our fetches; None before the first answers.

        Not asked for with ListOffsets: the embedded broker answers that with the start of the last batch.
        """
        with reaching(self._bootstrap):
            ends = {p: self._consumer.highwater(p) for p in self._consumer.assignment()}
            if None in ends.values():
                return None
            return sum(
                max(0, int(end) - int(self._consumer.position(p, timeout_ms=3000) or 0)) for p, end in ends.items()
            )

    def partitions(self, topic: str) -> set[int]:
        """The partitions of a topic in our share."""
        return {int(place.partition) for place in self._consumer.assignment() if place.topic == topic}

    def close(self) -> None:
        """Leave the group, if we are settled in it.

        A member that leaves while it is being let in blocks the embedded broker's group for ever (seen with Tansu); one
        that falls silent is expelled after the session timeout, here as on Kafka.
        """
        with contextlib.suppress(Exception):
            if self._consumer.group_metadata().state == MemberState.STABLE:
                self._consumer.close(autocommit=False, timeout_ms=2000)
            else:
                self._consumer._client.close()

    def _on_assigned(self) -> None:
        self._reassigned = True


class Backlog:
    """What is in a topic as of now and `reader`, a name, has not done with yet. One process at a time; no group to join."""

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
        """What waits, in order per partition, up to the ends that the first answers name. Raises BrokerUnavailable."""
        with reaching(self._bootstrap):
            places = [TopicPartition(self._topic, p) for p in self._consumer.partitions_for_topic(self._topic) or ()]
            self._consumer.assign(places)
            ends: dict[TopicPartition, int] = {}
            deadline = time.monotonic() + BACKLOG_SECONDS
            while any(p not in ends or self._consumer.position(p, timeout_ms=3000) < ends[p] for p in places):
                polled = self._consumer.poll(timeout_ms=FETCH_MS)
                known = ((p, self._consumer.highwater(p)) for p in places)
                ends = {p: int(end) for p, end in known if end is not None} | ends
                found = [
                    Message(r.topic, r.partition, r.offset, r.key, r.value, tuple(r.headers))
                    for place, records in polled.items()
                    for r in records
                    if r.offset < ends[place]
                ]
                if found:
                    yield found
                    deadline = time.monotonic() + BACKLOG_SECONDS
                elif time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"broker {self._bootstrap}: nothing of {self._topic} in {BACKLOG_SECONDS} s"
                    )

    def done(self, messages: Sequence[Message]) -> None:
        """The reader need not see these again. Raises BrokerUnavailable."""
        last = {TopicPartition(m.topic, m.partition): m.offset for m in messages}
        with reaching(self._bootstrap):
            offsets = {place: OffsetAndMetadata(offset + 1, "", -1) for place, offset in last.items()}
            self._consumer.commit(offsets, timeout_ms=5000)
