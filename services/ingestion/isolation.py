"""Isolation: store a micro-batch even if some of its messages cannot be stored.

Turns messages that fail together into stored messages and, for each that fails alone, a dead letter. The feedback consumer
calls it for every micro-batch. It does not know why a message fails.
"""

import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.messaging.publisher import Message

log = logging.getLogger("ratchet.feedback_consumer")

# Errors that a message's content can cause; any other error comes from the machine, the store or the broker.
SUSPECT = (ValueError, TypeError, ArithmeticError, LookupError, sqlite3.DataError, sqlite3.InterfaceError)


class Unstorable(RuntimeError):
    """Too many messages in a row cannot be stored: the cause lies elsewhere."""


@dataclass(frozen=True, kw_only=True)
class IsolationLimits:
    """How often a message is tried alone, and how many such messages in a row are too many.

    `pause_s` is the pause in seconds before the second attempt; twice that before the third.
    """

    attempts: int = 3
    pause_s: float = 0.25
    failed_in_a_row: int = 10


DEFAULT_LIMITS = IsolationLimits()


class Store(Protocol):
    """Stores messages, or makes dead letters of them if `refused` gives a reason."""

    def __call__(self, messages: Sequence[Message], refused: str | None = None) -> None:
        """Store all of the messages or none. Raises one of SUSPECT if a message may be the cause."""


class Isolation:
    """Finds by halving the messages that cannot be stored."""

    def __init__(self, store: Store, limits: IsolationLimits = DEFAULT_LIMITS) -> None:
        self._store = store
        self._limits = limits
        self._failed_in_a_row = 0

    def store(self, messages: Sequence[Message]) -> None:
        """Store messages in order; one that fails every attempt alone becomes a dead letter. Raises Unstorable."""
        try:
            self._store(messages)
            self._failed_in_a_row = 0
        except SUSPECT as error:
            if len(messages) == 1:
                self._store_alone(messages[0], error)
                return
            log.warning("%d messages cannot be stored together: %s", len(messages), type(error).__name__)
            middle = len(messages) // 2
            self.store(messages[:middle])
            self.store(messages[middle:])

    def _store_alone(self, message: Message, error: Exception) -> None:
        for attempt in range(1, self._limits.attempts):
            time.sleep(self._limits.pause_s * attempt)
            try:
                self._store([message])
            except SUSPECT as again:
                error = again
            else:
                return
        self._failed_in_a_row += 1
        if self._failed_in_a_row > self._limits.failed_in_a_row:
            raise Unstorable(
                f"more than {self._limits.failed_in_a_row} messages in a row cannot be stored ({type(error).__name__}): check "
                "the disk and the feature store; the messages are kept and tried again"
            )
        self._store([message], refused=f"failed {self._limits.attempts} times alone: {type(error).__name__}")
