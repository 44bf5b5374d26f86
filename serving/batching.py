"""The micro-batcher: many requests, few calls of the model.

Turns each request's texts into sub-batches of similar length and runs them on one thread, round-robin between requests, so
that a request of one text never waits behind 256 of another. api.py submits; it runs what live.py holds. It deliberately
knows no HTTP and no registry.

All texts of a request run on the one runtime that was live when its first sub-batch began: no answer mixes versions.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serving.runtime import Runtime


class QueueFull(ConnectionError):
    """More texts wait than the bound allows."""


class DeadlinePassed(TimeoutError):
    """The request waited longer than its time before its work began."""


class NotReady(ConnectionError):
    """No champion is loaded yet."""


@dataclass(frozen=True)
class Answer:
    """Calibrated probabilities [n, k], and the runtime and generation that gave them."""

    runtime: Runtime
    generation: int
    probabilities: NDArray[np.float64]


@dataclass(eq=False)
class _Request:
    texts: Sequence[str]
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Answer]"
    runtime: Runtime | None = None
    generation: int = 0
    encoded: list[list[int]] = field(default_factory=list)
    remaining: deque[int] = field(default_factory=deque)
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))


class MicroBatcher:
    """One worker's queue and thread."""

    def __init__(self, current: Callable[[], tuple[Runtime, int] | None], *, max_batch: int, max_queue: int) -> None:
        self._current = current
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._waiting: deque[_Request] = deque()
        self._texts = 0
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    async def submit(self, texts: Sequence[str], timeout_s: float) -> Answer:
        """Probabilities of `texts`, within `timeout_s`. Raises QueueFull, DeadlinePassed or NotReady."""
        loop = asyncio.get_running_loop()
        request = _Request(texts, time.monotonic() + timeout_s, loop, loop.create_future())
        with self._condition:
            if self._texts and self._texts + len(texts) > self._max_queue:
                raise QueueFull(f"{self._texts} texts are waiting")
            self._texts += len(texts)
            self._waiting.append(request)
            self._condition.notify()
        return await request.future

    def close(self) -> None:
        """Finish what waits and stop the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(5)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._closed:
                    self._condition.wait()
                if not self._waiting:
                    return
                requests = self._next_requests()
            try:
                self._run_once(requests)
            except Exception as error:  # whatever the model raises belongs to these requests, not to the thread
                for request in requests:
                    self._settle(request, error)

    def _next_requests(self) -> list[_Request]:
        """The requests of the next call: the first in line, and as many behind it as fit beside it."""
        chosen: list[_Request] = []
        room = self._max_batch
        while self._waiting and room > 0:
            request = self._waiting.popleft()
            chosen.append(request)
            room -= len(request.remaining) or len(request.texts)
        return chosen

    def _run_once(self, requests: list[_Request]) -> None:
        begun = [request for request in requests if self._begin(request)]
        by_runtime: dict[int, list[_Request]] = {}
        for request in begun:
            by_runtime.setdefault(id(request.runtime), []).append(request)
        for group in by_runtime.values():
            rows = [(request, request.remaining.popleft()) for request in group]
            for request in group:
                while request.remaining and len(rows) < self._max_batch:
                    rows.append((request, request.remaining.popleft()))
            runtime = group[0].runtime
            assert runtime is not None
            rows.sort(key=lambda row: len(row[0].encoded[row[1]]))
            found = runtime.run([request.encoded[i] for request, i in rows])
            for (request, i), probabilities in zip(rows, found, strict=True):
                request.probabilities[i] = probabilities
        for request in begun:
            if request.remaining:
                with self._condition:
                    self._waiting.append(request)
            else:
                assert request.runtime is not None
                self._settle(request, Answer(request.runtime, request.generation, request.probabilities))

    def _begin(self, request: _Request) -> bool:
        if request.runtime is not None:
            return True
        current = self._current()
        if current is None:
            self._settle(request, NotReady("no champion is loaded yet"))
        elif time.monotonic() > request.deadline:
            self._settle(request, DeadlinePassed("the request waited too long"))
        else:
            request.runtime, request.generation = current
            request.encoded = request.runtime.encode(request.texts)
            order = sorted(range(len(request.texts)), key=lambda i: len(request.encoded[i]))
            request.remaining = deque(order)
            request.probabilities = np.zeros((len(request.texts), len(request.runtime.labels)))
            return True
        return False

    def _settle(self, request: _Request, outcome: Answer | Exception) -> None:
        with self._condition:
            self._texts -= len(request.texts)

        def tell() -> None:
            if request.future.done():
                return
            if isinstance(outcome, Exception):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)

        request.loop.call_soon_threadsafe(tell)
