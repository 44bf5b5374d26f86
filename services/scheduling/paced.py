"""Paced reads: a costly read takes at most a tenth of the time.

Turns a read that could be repeated at each tick into one that is repeated after nine times its own duration. The scheduler
counts feedback so: with millions of rows a count takes seconds, and new feedback comes each second.
"""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

SHARE = 0.1  # of the time, at most

T = TypeVar("T")


class Paced(Generic[T]):
    """The last value of a read, and when it may be read again."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._kept: tuple[object, T] | None = None
        self._again_at = float("-inf")

    def get(self, about: object, read: Callable[[], T]) -> T:
        """Return what `read` returns, or its last value if that was about the same and is too fresh to be read again."""
        began = self._monotonic()
        if self._kept is not None and self._kept[0] == about and began < self._again_at:
            return self._kept[1]
        value = read()
        ended = self._monotonic()
        self._kept, self._again_at = (about, value), ended + (ended - began) * (1 - SHARE) / SHARE
        return value
