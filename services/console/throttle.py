"""Throttles: how often an address may try something.

Turns attempts into permission, by a token bucket for each address and one for all together. Sign-in and /try use it.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_ADDRESSES = 10_000


class Throttle:
    """A token bucket for each name, and one for all.

    Args:
        burst: attempts that a name has at once.
        per_minute: attempts that a name regains in a minute.
        all_per_minute: attempts of all names together in a minute.
        clock: monotonic seconds.

    """

    def __init__(
        self, burst: int, per_minute: float, all_per_minute: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._rate, self._all_rate = burst, per_minute / 60, all_per_minute / 60
        self._most = all_per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._all = (all_per_minute, clock())

    def wait_s(self, name: str) -> int:
        """Take one attempt and return 0; or return the seconds until the next is allowed, and take none."""
        with self._lock:
            now = self._clock()
            mine = self._filled(self._buckets.get(name, (self._burst, now)), self._rate, self._burst, now)
            everyone = self._filled(self._all, self._all_rate, self._most, now)
            short = max((1 - mine) / self._rate, (1 - everyone) / self._all_rate)
            if short > 0:
                return math.ceil(short)
            self._keep(name, mine - 1, now)
            self._all = (everyone - 1, now)
            return 0

    def forgive(self, name: str) -> None:
        """Give an attempt back, because it was right."""
        with self._lock:
            left, at = self._buckets.get(name, (self._burst, self._clock()))
            self._keep(name, min(self._burst, left + 1), at)
            self._all = (min(self._most, self._all[0] + 1), self._all[1])

    def _keep(self, name: str, left: float, at: float) -> None:
        self._buckets[name] = (left, at)
        self._buckets.move_to_end(name)
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)

    @staticmethod
    def _filled(bucket: tuple[float, float], rate: float, most: float, now: float) -> float:
        left, at = bucket
        return min(most, left + (now - at) * rate)
