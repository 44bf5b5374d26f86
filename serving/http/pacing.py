"""Pacing of cheap answers: refusals and public pages are delayed once a worker sends many of them.

Turns the cost of an answer into a delay. The router and the front wait before they send an answer that needs no key. A caller
without a key can thus use only a small share of the event loop; predictions and accepted feedback never wait here.
"""

import asyncio
import time
from collections.abc import Callable

REFUSED_BODY_BYTES = 256_000  # reading and discarding this much costs about as much as a refusal


class Pacing:
    """A token bucket shared by all callers of one worker.

    Args:
        per_second: answers per second.
        burst: answers that may be sent at once after a pause.
        longest_s: longest delay of one answer, in seconds.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        *,
        per_second: float = 200.0,
        burst: float = 100.0,
        longest_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second = per_second
        self._burst_s = burst / per_second
        self._longest_s = longest_s
        self._clock = clock
        self._free_at = float("-inf")

    def delay(self, cost: float = 1.0) -> float:
        """Take `cost` answers from the bucket and return how many seconds to wait before sending."""
        now = self._clock()
        self._free_at = max(self._free_at, now - self._burst_s) + cost / self._per_second
        self._free_at = min(self._free_at, now + self._longest_s)
        return max(0.0, self._free_at - now)

    async def wait(self, cost: float = 1.0) -> None:
        """Wait until an answer of this cost may be sent."""
        if seconds := self.delay(cost):
            await asyncio.sleep(seconds)


def refusal_cost(headers: dict[bytes, bytes], largest: int) -> float:
    """Return the cost of refusing a request whose body may not have been read yet: up to `largest` bytes are discarded."""
    length = headers.get(b"content-length", b"0")
    unread = largest if b"transfer-encoding" in headers or not length.isdigit() else min(int(length[:18]), largest)
    return 1 + unread / REFUSED_BODY_BYTES
