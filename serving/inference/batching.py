"""The micro-batcher: many requests, few calls of the model.

Turns each request's texts into sub-batches of similar length and runs them on one thread. api.py submits; it runs what
live.py holds. It deliberately knows no HTTP and no registry.

Work goes in turns. Every request that waits gets a text into the next turn before any gets a second one, so that a request
of one text never waits behind 256 of another. Which of its texts is free to choose: a turn takes those that are about as long as
each other. All texts of a request run on the one runtime that was live when its first turn began: no answer mixes versions.

A request whose caller left loses its place at once: its texts are not run, and no longer counted. admission.py refuses those that
would be answered too late.
"""

import asyncio
import contextlib
import heapq
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.manifests import ModelManifest
from serving.inference.admission import Admission, QueueFull
from serving.inference.encoder_runtime import Runtime
from serving.inference.loading import Loaded
from serving.inference.outputs import Said

# What a call costs beside its tokens, in tokens: on MiniLM 20 in fp32, 9 in int8, and 2 in Python (docs/lab-notes.md).
CALL_TOKENS = 16


class DeadlinePassed(TimeoutError):
    """The request waited longer than its time before its work began."""


class NotReady(ConnectionError):
    """No champion is loaded yet, or this worker is stopping."""


@dataclass(frozen=True)
class Answer:
    """Calibrated outputs [n, k], and the runtime and generation that gave them."""

    runtime: Runtime
    generation: int
    probabilities: NDArray[np.float64]

    @property
    def manifest(self) -> ModelManifest:
        """Of the runtime."""
        return self.runtime.manifest

    def said(self, coverage: float | None) -> Iterable[Said]:
        """What answer and event say of each text."""
        return self.runtime.outputs.said(self.probabilities, coverage)


@dataclass(eq=False)
class _Request:
    texts: Sequence[str]
    deadline: float  # by which its work has to begin
    future: "asyncio.Future[Answer]"
    runtime: Runtime | None = None
    generation: int = 0
    encoded: list[list[int]] = field(default_factory=list)
    remaining: list[int] = field(default_factory=list)  # shortest first
    missing: int = 0
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    settled: bool = False

    def nearest(self, length: int) -> tuple[int, int]:
        """Of what remains, the text nearest to a length: how far it is from it, and its place."""
        after = bisect_left(self.remaining, length, key=lambda n: len(self.encoded[n]))
        places = range(max(0, after - 1), min(after + 1, len(self.remaining)))
        return min((abs(len(self.encoded[self.remaining[place]]) - length), place) for place in places)


_Outcome = tuple[_Request, Answer | Exception]


class MicroBatcher:
    """One worker's queue and thread.

    Args:
        current: the live runtime and its generation, asked as work begins.
        max_batch: texts in a turn; with one turn's worth of others before it, a text is never further away.
        max_queue: texts waiting before QueueFull; an idle queue takes a request of any size.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        current: Callable[[], tuple[Loaded, int] | None],
        *,
        max_batch: int,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._current = current
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._clock = clock
        self._waiting: deque[_Request] = deque()
        self._running = 0  # requests in the turn at hand
        self._texts = 0
        self._admission = Admission(clock)
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    async def submit(self, texts: Sequence[str], timeout_s: float) -> Answer:
        """Return probabilities of `texts`, if their work begins within `timeout_s` seconds.

        Cancelling it takes the request out of the queue. Raises QueueFull, DeadlinePassed or NotReady.
        """
        asked_at = self._clock()
        request = _Request(texts, asked_at + timeout_s, asyncio.get_running_loop().create_future())
        with self._condition:
            if self._closed:
                raise NotReady("this worker is stopping")
            if self._texts and self._texts + len(texts) > self._max_queue:
                raise QueueFull(f"{self._texts} texts are waiting")
            self._admission.check(self._ahead_of(len(texts)), timeout_s)
            self._texts += len(texts)
            self._waiting.append(request)
            self._condition.notify()
        try:
            return await request.future
        except asyncio.CancelledError:
            self._leave(request, self._clock() - asked_at, timeout_s)
            raise

    def check(self, timeout_s: float) -> None:
        """Raise QueueFull if even one text would be answered too late: before a request is read, and costs anything."""
        with self._condition:
            self._admission.check(self._ahead_of(1), timeout_s)

    def _ahead_of(self, texts: int) -> int:
        """Texts that run before the last of so many new ones: each request gets one into a turn before any gets a second."""
        return min(self._texts, (len(self._waiting) + self._running) * texts)

    def _leave(self, request: _Request, age_s: float, timeout_s: float) -> None:
        """Forget a request whose caller left, wherever it is."""
        with self._condition:
            if request.settled:
                return
            request.settled = True
            self._texts -= len(request.texts)
            self._admission.hung_up(age_s, timeout_s)
            with contextlib.suppress(ValueError):  # in the turn at hand
                self._waiting.remove(request)

    def close(self) -> None:
        """Finish what waits and stop the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(5)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._running = 0
                while not self._waiting and not self._closed:
                    self._condition.wait()
                requests = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
                self._running = len(requests)
            if not requests:
                return
            try:
                self._take_turn(requests)
            except Exception as error:  # whatever the model raises belongs to these requests, not to the thread
                self._settle([(request, error) for request in requests])

    def _take_turn(self, requests: list[_Request]) -> None:
        began_at = self._clock()
        begun = self._begin(requests)
        rows = turn(begun, self._max_batch)
        ran = 0
        for runtime in {id(request.runtime): request.runtime for request in begun}.values():
            assert runtime is not None
            mine = sorted(
                (row for row in rows if row[0].runtime is runtime), key=lambda row: len(row[0].encoded[row[1]])
            )
            lengths = [len(request.encoded[n]) for request, n in mine]
            for start, end in cut(lengths):
                ran += self._run_batch(runtime, mine[start:end])
        with self._condition:
            self._admission.worked(ran, self._clock() - began_at)
            self._waiting.extend(request for request in begun if not request.settled)

    def _run_batch(self, runtime: Runtime, rows: list[tuple[_Request, int]]) -> int:
        """Run those of the rows that somebody waits for; how many there were."""
        finished: list[_Outcome] = []
        rows = [row for row in rows if not row[0].settled]
        if not rows:
            return 0
        found = runtime.run([request.encoded[n] for request, n in rows])
        for (request, n), probabilities in zip(rows, found, strict=True):
            request.probabilities[n] = probabilities
            request.missing -= 1
            if not request.missing:
                finished.append((request, Answer(runtime, request.generation, request.probabilities)))
        self._settle(finished)
        return len(rows)

    def _begin(self, requests: list[_Request]) -> list[_Request]:
        """Those of `requests` that may run; the others are refused. Fresh ones are given the live runtime, and encoded."""
        live, now = self._current(), self._clock()
        requests = [request for request in requests if not request.settled]
        fresh = [request for request in requests if request.runtime is None]
        late = [request for request in fresh if now > request.deadline]
        refused: list[_Outcome] = [(r, DeadlinePassed("the deadline passed before the work began")) for r in late]
        fresh = [request for request in fresh if now <= request.deadline]
        runtime, generation = live or (None, 0)
        if not isinstance(runtime, Runtime):
            refused += [(request, NotReady("no champion is loaded yet")) for request in fresh]
        elif fresh:
            encoded = iter(runtime.encode([text for request in fresh for text in request.texts]))
            for request in fresh:
                request.runtime, request.generation = runtime, generation
                request.encoded = [next(encoded) for _ in request.texts]
                request.remaining = sorted(range(len(request.texts)), key=lambda n: len(request.encoded[n]))
                request.missing = len(request.texts)
                request.probabilities = np.zeros((len(request.texts), runtime.columns))
        self._settle(refused)
        return [request for request in requests if request.runtime is not None]

    def _settle(self, outcomes: list[_Outcome]) -> None:
        """Tell the waiting, all of one event loop at once."""
        with self._condition:
            outcomes = [outcome for outcome in outcomes if not outcome[0].settled]
            for request, _ in outcomes:
                request.settled = True
                self._texts -= len(request.texts)
        loops = {request.future.get_loop() for request, _ in outcomes}
        for loop in loops:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who waited
                loop.call_soon_threadsafe(_tell, [o for o in outcomes if o[0].future.get_loop() is loop])


def _tell(outcomes: list[_Outcome]) -> None:
    for request, outcome in outcomes:
        if request.future.done():  # the caller went away
            continue
        if isinstance(outcome, Exception):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)


def turn(requests: Sequence[_Request], most: int) -> list[tuple[_Request, int]]:
    """A text of each request, and more of them up to `most`: those nearest in length to the shortest that the first one has left.

    What is about as long as each other runs in one call without padding; the first request waited longest and sets the pace.
    """
    if not requests:
        return []
    length = len(requests[0].encoded[requests[0].remaining[0]])
    rows = [(request, request.remaining.pop(request.nearest(length)[1])) for request in requests]

    def offer(n: int) -> tuple[int, int, int]:
        distance, place = requests[n].nearest(length)
        return distance, n, place

    more = [offer(n) for n, request in enumerate(requests) if request.remaining]
    heapq.heapify(more)
    while more and len(rows) < most:
        _, n, place = heapq.heappop(more)
        rows.append((requests[n], requests[n].remaining.pop(place)))
        if requests[n].remaining:
            heapq.heappush(more, offer(n))
    return rows


def cut(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Where to cut rows that are sorted by length into batches, so that they cost least.

    A batch costs its rows times its longest, and CALL_TOKENS. Dynamic programming over the places of the last cut.
    """
    cost, last = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        price, start = min((cost[start] + (end - start) * longest + CALL_TOKENS, start) for start in range(end))
        cost.append(price)
        last.append(start)
    cuts, end = [], len(lengths)
    while end:
        cuts.append((last[end], end))
        end = last[end]
    return cuts[::-1]
