"""Retries: how often and how long a call is repeated.

Waits grow exponentially and are drawn at random below their bound, so that callers refused together do not return together
("full jitter": Brooker, Exponential Backoff And Jitter, AWS Architecture Blog 2015). A server's Retry-After is the least wait.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from ratchet_client.errors import Unavailable


@dataclass(frozen=True)
class Retries:
    """Limits of one call's repetitions.

    Attributes:
        attempts: most attempts, the first included.
        total_s: seconds after which no further attempt begins.
        first_s: bound of the first wait; it doubles with every attempt.
        longest_s: largest bound of a wait; a Retry-After may be longer.

    """

    attempts: int = 5
    total_s: float = 30.0
    first_s: float = 0.2
    longest_s: float = 5.0


@dataclass(frozen=True)
class Trouble:
    """Why an attempt failed, and the seconds that the server asked to wait."""

    reason: str
    retry_after_s: float = 0.0


class Attempts:
    """The attempts of one call.

    Args:
        retries: the limits.
        clock: monotonic seconds.
        draw: a random number in [0, 1).

    """

    def __init__(
        self,
        retries: Retries,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,  # noqa: S311  # spreads callers, keeps no secret
    ) -> None:
        self._retries, self._clock, self._draw = retries, clock, draw
        self._until = clock() + retries.total_s
        self._made = 0

    def pause(self, trouble: Trouble) -> float:
        """Return the seconds to wait before the next attempt. Raises Unavailable if there may be none."""
        self._made += 1
        bound = min(self._retries.longest_s, self._retries.first_s * 2.0 ** (self._made - 1))
        wait = trouble.retry_after_s + self._draw() * bound
        if self._made >= self._retries.attempts:
            raise Unavailable(f"{trouble.reason}; gave up after {self._made} attempts")
        if self._clock() + wait > self._until:
            raise Unavailable(
                f"{trouble.reason}; gave up, {self._retries.total_s:g} s would pass before the next attempt"
            )
        return wait
