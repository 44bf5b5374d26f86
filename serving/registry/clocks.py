"""How clocks are compared: seconds without a change by the monotonic clock, and stored times ahead of the wall clock.

`Unchanged` turns values that other processes write (a lease, a heartbeat) into seconds without a change. The leases and
the training scheduler use it, because wall clocks can be set and differ between machines. It keeps nothing beyond the process.
"""

import time
from collections.abc import Callable, Hashable, Iterable
from datetime import datetime

CLOCK_SLACK_S = 60.0  # seconds by which clocks may differ, and leases lie ahead, without a warning


class Unchanged:
    """Watch values by name. `monotonic` returns seconds that never go back."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, tuple[Hashable, float]] = {}

    def seconds(self, name: str, value: Hashable) -> float:
        """Return for how many seconds each call for `name` has got the same `value`; 0 at the first call."""
        now = self._monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != value:
            self._seen[name] = known = (value, now)
        return now - known[1]


def seconds_ahead(times: Iterable[str | None], now: datetime) -> float:
    """Return by how many seconds the newest of some ISO times is ahead of `now`; 0 below CLOCK_SLACK_S."""
    ahead = max(((datetime.fromisoformat(time) - now).total_seconds() for time in times if time), default=0.0)
    return ahead if ahead > CLOCK_SLACK_S else 0.0
