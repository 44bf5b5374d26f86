"""What the registry says is stored, held against what the event log holds.

Turns a disagreement into a corrected registry and a line. The feedback consumer calls it as it starts to read; outboxes
forget events by what the registry says. It deliberately moves nothing in Kafka.
"""

import logging

from pipelines.feature_store.event_log import SCHEMAS, EventLog
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.feedback_consumer")


def start_of(registry: Registry, events: EventLog, table: str, place: str) -> int:
    """Return the offset to read a '<topic_id>/<partition>' from, and tell the registry how far the log is.

    Whoever stored the last rows may have died before telling the registry; or the log went back, as its tail was damaged.
    """
    stored = events.position(table, place)
    known = registry.correct_position(place, stored)
    if known > stored:
        log.error("event log %s: offsets %d to %d of %s are gone: they are read again", table, stored + 1, known, place)
    return stored + 1


def gone(registry: Registry, events: EventLog, current: set[str]) -> list[str]:
    """Return a sentence for each place of a topic that is no more, of which the log lost rows that nobody sends again.

    Args:
        registry: what was stored once.
        events: what is stored.
        current: ids of the topics that are there; theirs are read again.

    """
    found = []
    for place, known in sorted(registry.positions().items()):
        stored = max(events.position(table, place) for table in SCHEMAS)
        if known > stored and place.partition("/")[0] not in current:
            found.append(f"offsets {stored + 1} to {known} of {place}, whose topic is no more")
    return found
