"""A runtime whose calls a test holds back, texts for it, and a clock that stands.

The tests of the micro-batcher and of callers who hang up use them.
"""

import asyncio
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.inference.batching import EncoderResult, MicroBatcher
from serving.inference.encoder_runtime import Runtime
from tests.support.fakes import toy_rows

TEXTS = [text for text, _ in toy_rows(300, seed=5)]


class Held(Runtime):
    """A runtime that may run so many rows and then waits, and remembers the rows of each call."""

    def __init__(self, directory: Path) -> None:
        self.entered, self._changed = threading.Event(), threading.Condition()
        self._allowed = math.inf
        self.calls: list[int] = []
        super().__init__(directory)
        self.calls.clear()
        self.entered.clear()

    def allow(self, rows: float) -> None:
        """From now on, so many rows."""
        with self._changed:
            self._allowed = rows
            self._changed.notify_all()

    def run(self, encoded: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        self.entered.set()
        with self._changed:
            assert self._changed.wait_for(lambda: self._allowed > 0, 20)
            self._allowed -= len(encoded)
        self.calls.append(len(encoded))
        return super().run(encoded)

    async def hold(self, batcher: MicroBatcher) -> "asyncio.Task[EncoderResult]":
        """Keep the batcher's thread busy with one text."""
        self.allow(0)
        self.entered.clear()
        task = asyncio.create_task(batcher.submit(["held"], 10))
        await asyncio.to_thread(self.entered.wait, 10)
        return task


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now
