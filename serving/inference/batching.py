"""The micro-batcher: many requests share few calls of the model.

Turns each request's texts into batches of similar length and runs them on one thread. api.py submits requests; live.py
supplies the runtime. It knows no HTTP and no registry.

Work runs in turns. Each waiting request gets one text into the next turn before any gets a second, so a request of one text never
waits behind 256 of another. A turn chooses texts of similar length, which need little padding. All texts of a request run on the
runtime that was live when its first turn began, so no result mixes versions.

A request whose caller left is removed at once: its texts do not run. admission.py refuses what would be answered too late.
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
from serving.inference.outputs import Prediction

# The fixed cost of a call, in tokens: on MiniLM 20 in fp32, 9 in int8, and 2 for Python (docs/lab-notes.md).
CALL_TOKENS = 16


class DeadlinePassed(TimeoutError):
    """The request's time-out passed before its work began."""


class NotReady(ConnectionError):
    """No champion is loaded yet, or this worker is stopping."""


@dataclass(frozen=True)
class EncoderResult:
    """Calibrated outputs [n, k] of one request, and the runtime and live generation that produced them."""

    runtime: Runtime
    generation: int
    probabilities: NDArray[np.float64]

    @property
    def manifest(self) -> ModelManifest:
        """Return the runtime's manifest."""
        return self.runtime.manifest

    def predictions(self, coverage: float | None) -> Iterable[Prediction]:
        """Return the prediction of each text."""
        return self.runtime.outputs.predictions(self.probabilities, coverage)


@dataclass(eq=False)
class QueuedRequest:
    """A submitted request: its texts, their tokens once it has begun, and which texts have not run yet."""

    texts: Sequence[str]
    deadline: float  # its work begins before this, or it is refused
    future: "asyncio.Future[EncoderResult]"
    runtime: Runtime | None = None
    generation: int = 0
    encoded: list[list[int]] = field(default_factory=list)
    remaining: list[int] = field(default_factory=list)  # shortest first
    missing: int = 0
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    settled: bool = False

    def nearest(self, length: int) -> tuple[int, int]:
        """Return the remaining text nearest to a length: its distance in tokens, and its index in `remaining`."""
        after = bisect_left(self.remaining, length, key=lambda n: len(self.encoded[n]))
        near = range(max(0, after - 1), min(after + 1, len(self.remaining)))
        return min((abs(len(self.encoded[self.remaining[index]]) - length), index) for index in near)


_Outcome = tuple[QueuedRequest, EncoderResult | Exception]


class MicroBatcher:
    """One worker's queue and thread.

    Args:
        current: returns the live runtime and its generation; called when a turn begins.
        max_batch: most texts in a turn.
        max_queue: most waiting texts before QueueFull; an empty queue takes a request of any size.
        clock: monotonic seconds.
        observe: called with the texts of each call of the model, and the texts that wait.

    """

    def __init__(
        self,
        current: Callable[[], tuple[Loaded, int] | None],
        *,
        max_batch: int,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._current, self._observe, self._clock = current, observe, clock
        self._max_batch, self._max_queue = max_batch, max_queue
        self._waiting: deque[QueuedRequest] = deque()
        self._running = 0  # requests in the current turn
        self._texts = 0
        self._admission = Admission(clock)
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    async def submit(self, texts: Sequence[str], timeout_s: float) -> EncoderResult:
        """Return the calibrated outputs of `texts`. Cancelling the call removes the request from the queue.

        Raises QueueFull, NotReady, or DeadlinePassed if the work does not begin within `timeout_s` seconds.
        """
        submitted_at = self._clock()
        request = QueuedRequest(texts, submitted_at + timeout_s, asyncio.get_running_loop().create_future())
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
            self._leave(request, self._clock() - submitted_at, timeout_s)
            raise

    def check(self, timeout_s: float) -> None:
        """Raise QueueFull if even one text would be answered too late. Called before a request's body is read."""
        with self._condition:
            self._admission.check(self._ahead_of(1), timeout_s)

    def _ahead_of(self, texts: int) -> int:
        """Return how many waiting texts run before the last of `texts` new ones."""
        return min(self._texts, (len(self._waiting) + self._running) * texts)

    def _leave(self, request: QueuedRequest, age_s: float, timeout_s: float) -> None:
        """Drop a request whose caller left, waiting or in the current turn."""
        with self._condition:
            if request.settled:
                return
            request.settled = True
            self._texts -= len(request.texts)
            self._admission.hung_up(age_s, timeout_s)
            with contextlib.suppress(ValueError):  # in the current turn
                self._waiting.remove(request)

    def close(self) -> None:
        """Finish the waiting requests and stop the thread."""
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
            except Exception as error:  # the requests fail with it; the thread goes on
                self._settle([(request, error) for request in requests])

    def _take_turn(self, requests: list[QueuedRequest]) -> None:
        began_at = self._clock()
        begun = self._begin(requests)
        rows = turn(begun, self._max_batch)
        ran = 0
        for runtime in {id(request.runtime): request.runtime for request in begun}.values():
            assert runtime is not None
            batch = sorted(
                (row for row in rows if row[0].runtime is runtime), key=lambda row: len(row[0].encoded[row[1]])
            )
            for start, end in cut([len(request.encoded[n]) for request, n in batch]):
                ran += self._run_batch(runtime, batch[start:end])
        with self._condition:
            self._admission.worked(ran, self._clock() - began_at)
            self._waiting.extend(request for request in begun if not request.settled)

    def _run_batch(self, runtime: Runtime, rows: list[tuple[QueuedRequest, int]]) -> int:
        """Run the rows whose callers still wait; return their number."""
        finished: list[_Outcome] = []
        rows = [row for row in rows if not row[0].settled]
        if not rows:
            return 0
        outputs = runtime.run([request.encoded[n] for request, n in rows])
        self._observe(len(rows), self._texts - len(rows))
        for (request, n), probabilities in zip(rows, outputs, strict=True):
            request.probabilities[n] = probabilities
            request.missing -= 1
            if not request.missing:
                finished.append((request, EncoderResult(runtime, request.generation, request.probabilities)))
        self._settle(finished)
        return len(rows)

    def _begin(self, requests: list[QueuedRequest]) -> list[QueuedRequest]:
        """Return the requests that may run and refuse the others. New requests get the live runtime and are tokenised."""
        (runtime, generation), now = self._current() or (None, 0), self._clock()
        requests = [request for request in requests if not request.settled]
        new = [request for request in requests if request.runtime is None]
        late = [request for request in new if now > request.deadline]
        refused: list[_Outcome] = [(r, DeadlinePassed("the deadline passed before the work began")) for r in late]
        new = [request for request in new if now <= request.deadline]
        if not isinstance(runtime, Runtime):
            refused += [(request, NotReady("no champion is loaded yet")) for request in new]
        elif new:
            encoded = iter(runtime.encode([text for request in new for text in request.texts]))
            for request in new:
                request.runtime, request.generation = runtime, generation
                request.encoded = [next(encoded) for _ in request.texts]
                request.remaining = sorted(range(len(request.texts)), key=lambda n: len(request.encoded[n]))
                request.missing = len(request.texts)
                request.probabilities = np.zeros((len(request.texts), runtime.columns))
        self._settle(refused)
        return [request for request in requests if request.runtime is not None]

    def _settle(self, outcomes: list[_Outcome]) -> None:
        """Complete the requests' futures, with one call for each event loop."""
        with self._condition:
            outcomes = [outcome for outcome in outcomes if not outcome[0].settled]
            for request, _ in outcomes:
                request.settled = True
                self._texts -= len(request.texts)
        loops = {request.future.get_loop() for request, _ in outcomes}
        for loop in loops:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(_complete, [o for o in outcomes if o[0].future.get_loop() is loop])


def _complete(outcomes: list[_Outcome]) -> None:
    for request, outcome in outcomes:
        if request.future.done():  # the caller left
            continue
        if isinstance(outcome, Exception):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)


def turn(requests: Sequence[QueuedRequest], max_batch: int) -> list[tuple[QueuedRequest, int]]:
    """Choose one text of each request, and more up to `max_batch`. Return pairs of a request and the index of its text.

    The first request has waited longest: its shortest remaining text sets the length that the others come nearest to, so that
    they run in one call with little padding.
    """
    if not requests:
        return []
    length = len(requests[0].encoded[requests[0].remaining[0]])
    rows = [(request, request.remaining.pop(request.nearest(length)[1])) for request in requests]

    def offer(n: int) -> tuple[int, int, int]:
        distance, index = requests[n].nearest(length)
        return distance, n, index

    more = [offer(n) for n, request in enumerate(requests) if request.remaining]
    heapq.heapify(more)
    while more and len(rows) < max_batch:
        _, n, index = heapq.heappop(more)
        rows.append((requests[n], requests[n].remaining.pop(index)))
        if requests[n].remaining:
            heapq.heappush(more, offer(n))
    return rows


def cut(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut rows sorted by length into the cheapest batches. Return each batch's start and end.

    A batch costs its number of rows times its longest row, plus CALL_TOKENS. Dynamic programming over the start of the last
    batch.
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
