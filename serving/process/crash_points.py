"""Crash points: the places at which tests kill a process.

Turns RATCHET_CRASH_AT into a SIGKILL of this process. The consumer passes each of CONSUMER_POINTS once a batch;
tests/support/crashes.py proves that a crash at any of them neither loses nor duplicates an event. A round passes a point after
each step.
"""

import os
import signal

CONSUMER_POINTS = (
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
