"""Membership of a consumer group: what a member is told, and a join that is never left half done.

Turns kafka-python's coordinator into one that takes up every assignment. consumer.py uses it.
"""

from collections.abc import Callable, Iterable
from typing import Any

from kafka.consumer.subscription_state import ConsumerRebalanceListener


class OnAssigned(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Calls a function with the partitions of each assignment, on the network thread."""

    def __init__(self, assigned: Callable[[Any], None]) -> None:
        self._assigned = assigned

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Do nothing: the event log holds the positions."""

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Pass the partitions on."""
        self._assigned(assigned)


def is_settled(consumer: Any, topics: Iterable[str]) -> bool:
    """Return whether the member's assignment is based on all partitions of the topics.

    Nodes learn of a new topic in their own time. A member that joins before its node knows the topics gets no partitions until
    the next refresh of metadata.
    """
    known = all(consumer.partitions_for_topic(topic) for topic in topics)
    return known and not consumer._coordinator.need_rejoin()


def await_joins(coordinator: Any) -> None:
    """Make a member wait for a join that has begun until it has its assignment.

    kafka-python 3.0.12 counts a join as over once JoinGroup is answered. If `poll` ends between that and the answer of SyncGroup,
    the assignment is never taken up: the member stays in the group, alive and without partitions, for ever.
    """
    need_rejoin = coordinator.need_rejoin
    coordinator.need_rejoin = lambda: need_rejoin() or coordinator._join_task is not None
