"""Stored positions: the registry's offsets compared with those of the event log.

Turns a difference into a corrected registry and a log line. The feedback consumer calls it when it starts to read; outboxes
delete events by the registry's positions. It moves no offset in Kafka.
"""

import logging

from pipelines.feature_store.event_log import SCHEMAS, EventLog
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.feedback_consumer")


def start_of(registry: Registry, events: EventLog, table: str, partition_key: str) -> int:
    """Return the offset to read '<topic_id>/<partition>' from, after setting the registry's position to the log's.

    They differ if a consumer died before it recorded its last rows, or if the log's tail was damaged and cut off.
    """
    stored = events.position(table, partition_key)
    known = registry.correct_position(partition_key, stored)
    if known > stored:
        log.error(
            "event log %s: offsets %d to %d of %s are lost: reading them again", table, stored + 1, known, partition_key
        )
    return stored + 1


def lost_rows(registry: Registry, events: EventLog, current: set[str]) -> list[str]:
    """Return a description of the rows lost from each partition of a deleted topic, which cannot be read again.

    Args:
        registry: holds the positions that were stored once.
        events: the event log.
        current: ids of the existing topics; their lost rows are read again.

    """
    lost = []
    for key, known in sorted(registry.positions().items()):
        stored = max(events.position(table, key) for table in SCHEMAS)
        if known > stored and key.partition("/")[0].partition("~")[0] not in current:
            lost.append(f"offsets {stored + 1} to {known} of {key}, whose topic was deleted")
    return lost
