"""How long a value has stayed the same, by this process's monotonic clock.

Turns values that others write (a lease, a heartbeat) into seconds without a change. The registry's leases and the training
scheduler ask. Wall clocks can be set, and differ between machines; what one process has watched itself does neither. It
deliberately keeps nothing beyond the process: who starts anew watches anew.
"""

import time
from collections.abc import Callable, Hashable


class Unchanged:
    """Watch values by name. `monotonic` returns seconds that never go back."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, tuple[Hashable, float]] = {}

    def seconds(self, name: str, value: Hashable) -> float:
        """Return for how many seconds each look at `name` has found `value`; 0 at the first look."""
        now = self._monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != value:
            self._seen[name] = known = (value, now)
        return now - known[1]
