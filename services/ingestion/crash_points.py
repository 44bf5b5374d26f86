"""Crash points: the places at which tests kill the consumer.

Turns RATCHET_CRASH_AT into a SIGKILL of this process. The consumer passes each point once a batch; tests/support/crashes.py
proves that a crash at any of them neither loses nor duplicates an event.
"""

import os
import signal

CRASH_POINTS = (
    "after_poll",
    "before_dead_letters",
    "after_dead_letters",
    "after_online",
    "between_commits",
    "after_commits",
    "after_positions",
    "before_compaction",
    "after_compaction",
    "after_hint",
)


def crash_at(point: str) -> None:
    """Kill this process if RATCHET_CRASH_AT names `point`."""
    if os.environ.get("RATCHET_CRASH_AT") == point:
        os.kill(os.getpid(), signal.SIGKILL)
