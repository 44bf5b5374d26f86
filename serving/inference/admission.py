"""Admission control: refuse new requests while a queue is overloaded.

Turns the seconds that texts take and the age at which callers hang up into a decision: would a new request be answered before its
caller leaves? batching.py and generation_queue.py call it. It knows no queue and no HTTP.

A queue longer than its callers' patience answers nobody: each request is served just as its caller gives up. Callers do not state
their patience, but those who hang up reveal it. The expected wait is kept below a share of that patience; further requests are
refused at once. Until a caller hangs up, the limit is the request's own time-out.
"""

import math
import time
from collections.abc import Callable

WAIT_SHARE = 0.5  # of the callers' patience may pass in the queue; the rest is for the work itself
LEAST_PATIENCE_S = 0.25  # shorter waits are ignored: callers who leave at once are not impatient
LEARNING_SHARE = 0.1  # weight of the newest observation
RECOVERY_S = 60.0  # without a hang-up for so long, the estimated patience grows e-fold


class QueueFull(ConnectionError):
    """Too many texts are waiting. `retry_after_s` is when to try again, in whole seconds."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Admission:
    """One queue's estimates of seconds a text and of its callers' patience. Not thread-safe: the queue's lock guards it.

    Args:
        clock: monotonic seconds.

    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds_per_text = 0.0
        self._patience_s, self._known_at = math.inf, 0.0

    def worked(self, texts: int, seconds: float) -> None:
        """Update the seconds a text takes from `texts` that took `seconds`."""
        if texts:
            taken = seconds / texts
            share = LEARNING_SHARE if self._seconds_per_text else 1.0
            self._seconds_per_text += share * (taken - self._seconds_per_text)

    def hung_up(self, age_s: float, timeout_s: float) -> None:
        """Update the patience from a caller who left `age_s` seconds after the request, whose time-out was `timeout_s`."""
        known = min(self._patience(), timeout_s / WAIT_SHARE)
        self._patience_s = known + LEARNING_SHARE * (max(LEAST_PATIENCE_S, age_s) - known)
        self._known_at = self._clock()

    def check(self, ahead: int, timeout_s: float) -> None:
        """Raise QueueFull if the `ahead` texts before a new request take longer than its caller is likely to wait."""
        wait_s = ahead * self._seconds_per_text
        limit_s = min(timeout_s, WAIT_SHARE * self._patience())
        if wait_s > limit_s:
            raise QueueFull(
                f"overloaded: the expected wait is {wait_s:.1f} s, callers wait {limit_s:.1f} s",
                max(1, math.ceil(wait_s - limit_s)),
            )

    def _patience(self) -> float:
        """Return the estimated patience in seconds; it grows while nobody hangs up."""
        return self._patience_s * math.exp((self._clock() - self._known_at) / RECOVERY_S)
