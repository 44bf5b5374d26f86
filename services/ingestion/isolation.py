"""Isolation: store a micro-batch even if some of its messages cannot be stored.

Turns messages that fail together into stored messages and, for each that fails alone, a dead letter. The feedback consumer
calls it for every micro-batch. It does not know why a message fails.
"""

import logging
import sqlite3
import time
from collections.abc import Sequence
from typing import Protocol

from serving.messaging.publisher import Message

log = logging.getLogger("ratchet.feedback_consumer")

# Errors that a message's content can cause; any other error comes from the machine, the store or the broker.
SUSPECT = (ValueError, TypeError, ArithmeticError, LookupError, sqlite3.DataError, sqlite3.InterfaceError)
ATTEMPTS_ALONE = 3
PAUSE_SECONDS = 0.25  # before the second attempt; twice that before the third
FAILED_IN_A_ROW = 10


class Unstorable(RuntimeError):
    """Too many messages in a row cannot be stored: the cause lies elsewhere."""


class Store(Protocol):
    """Stores messages, or makes dead letters of them if `refused` gives a reason."""

    def __call__(self, messages: Sequence[Message], refused: str | None = None) -> None:
        """Store all of the messages or none. Raises one of SUSPECT if a message may be the cause."""


class Isolation:
    """Finds by halving the messages that cannot be stored."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failed_in_a_row = 0

    def store(self, messages: Sequence[Message]) -> None:
        """Store messages in order; one that fails ATTEMPTS_ALONE times by itself becomes a dead letter. Raises Unstorable."""
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
        for attempt in range(1, ATTEMPTS_ALONE):
            time.sleep(PAUSE_SECONDS * attempt)
            try:
                self._store([message])
            except SUSPECT as again:
                error = again
            else:
                return
        self._failed_in_a_row += 1
        if self._failed_in_a_row > FAILED_IN_A_ROW:
            raise Unstorable(f"more than {FAILED_IN_A_ROW} messages in a row: {type(error).__name__}")
        self._store([message], refused=f"failed {ATTEMPTS_ALONE} times alone: {type(error).__name__}")
