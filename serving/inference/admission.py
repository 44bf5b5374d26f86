"""Admission: which requests a queue takes while more come than it can answer.

Turns the time that texts take and the age at which callers hang up into one question: is a new request answered before its caller
leaves? batching.py and generation_queue.py ask it. It knows no queue and no HTTP.

A queue that is longer than its callers' patience answers nobody: each request is served just as its caller gives up. Callers do
not say how long they wait, but those who hang up show it. So the expected wait is held below a share of that, and who comes later
is refused at once. Until a caller hangs up, the limit is the time-out of the request itself.
"""

import math
import time
from collections.abc import Callable

WAIT_SHARE = 0.5  # of the callers' patience that may pass in the queue: the rest is for the answer itself
LEAST_PATIENCE_S = 0.25  # callers who leave at once say nothing about the others
LEARNING_SHARE = 0.1  # weight of the newest observation
RECOVERY_S = 60.0  # seconds without a hang-up after which patience is e times as long


class QueueFull(ConnectionError):
    """Too much waits. `retry_after_s` says when to ask again, in whole seconds."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Admission:
    """One queue's estimate of its pace and of its callers' patience. Not thread-safe: the queue's lock guards it.

    Args:
        clock: monotonic seconds.

    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds_per_text = 0.0
        self._patience_s, self._known_at = math.inf, 0.0

    def worked(self, texts: int, seconds: float) -> None:
        """Learn the pace from `texts` that took so many seconds."""
        if texts:
            taken = seconds / texts
            share = LEARNING_SHARE if self._seconds_per_text else 1.0
            self._seconds_per_text += share * (taken - self._seconds_per_text)

    def hung_up(self, age_s: float, timeout_s: float) -> None:
        """Learn patience from a caller who left `age_s` after asking, of the `timeout_s` it could have waited."""
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
        """Seconds; it grows while nobody hangs up."""
        return self._patience_s * math.exp((self._clock() - self._known_at) / RECOVERY_S)
