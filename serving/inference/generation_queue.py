"""The generation queue: requests for generated text run one at a time on a worker's thread.

Turns each request's texts into a `GenerationResult`, or one text into pieces as the model generates them. api.py submits
requests; live.py supplies the runtime. It knows no HTTP, no registry and no torch.

A request runs on the version that is live when its work begins, so no result mixes versions. All its texts are generated
together. A request whose caller leaves stops at the next token.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.manifests import ModelManifest
from serving.inference.admission import Admission, QueueFull
from serving.inference.batching import DeadlinePassed, NotReady
from serving.inference.encoder_runtime import Runtime
from serving.inference.loading import Loaded
from serving.inference.outputs import Prediction
from serving.privacy.anonymise import anonymise

if TYPE_CHECKING:
    from serving.inference.decoder_runtime import DecoderRuntime
    from serving.inference.text_generator import GeneratedText, Piece


@dataclass(frozen=True)
class GenerationResult:
    """The generated texts of one request, and the runtime and live generation that produced them."""

    runtime: "DecoderRuntime"
    generation: int
    generated: list["GeneratedText"]

    @property
    def manifest(self) -> ModelManifest:
        """Return the version's manifest."""
        return self.runtime.manifest

    @property
    def tokens(self) -> int:
        """Return the number of generated tokens."""
        return sum(len(text.tokens) for text in self.generated)

    def predictions(self, _coverage: float | None) -> Iterator[Prediction]:
        """Yield each text with its confidence. The event holds the text anonymised, as it holds the request's text."""
        confidences = self.runtime.confidence([text.logprobs for text in self.generated])
        for text, confidence in zip(self.generated, confidences, strict=True):
            yield (
                {"text": text.text, "confidence": confidence},
                {"label": anonymise(text.text.strip()), "confidence": confidence, "probabilities": {}},
            )


@dataclass(eq=False)
class _Request:
    texts: Sequence[str]
    max_new_tokens: int | None
    pieces: bool
    loop: asyncio.AbstractEventLoop
    results: "asyncio.Queue[Piece | GenerationResult | Exception | None]" = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    def send(self, result: "Piece | GenerationResult | Exception | None") -> None:
        """Pass a result from the thread to the waiting coroutine; None says that the work has begun."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self.loop.call_soon_threadsafe(self.results.put_nowait, result)


class GenerationQueue:
    """One worker's queue and thread.

    Args:
        current: returns the live runtime and its generation; called when work begins.
        max_queue: most waiting texts before QueueFull; an empty queue takes a request of any size.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        current: Callable[[], tuple[Loaded, int] | None],
        *,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._current = current
        self._max_queue = max_queue
        self._clock = clock
        self._waiting: deque[_Request] = deque()
        self._running = 0  # texts of the request that runs
        self._admission = Admission(clock)
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    async def generate(self, texts: Sequence[str], max_new_tokens: int | None, timeout_s: float) -> GenerationResult:
        """Return texts of at most `max_new_tokens` tokens each.

        Raises:
            QueueFull: too many texts are waiting.
            DeadlinePassed: the work did not begin within `timeout_s` seconds.
            NotReady: no decoder is live, or this worker is stopping.

        """
        async with contextlib.aclosing(self._results(texts, max_new_tokens, timeout_s, pieces=False)) as results:
            async for result in results:
                if isinstance(result, GenerationResult):
                    return result
        raise NotReady("this worker is stopping")

    def stream(
        self, text: str, max_new_tokens: int | None, timeout_s: float
    ) -> "AsyncGenerator[Piece | GenerationResult]":
        """Yield the pieces of one text as they are generated, then the result. Raises as `generate`, before the first piece."""
        return self._results([text], max_new_tokens, timeout_s, pieces=True)

    def close(self) -> None:
        """Finish the running request, refuse the waiting ones, and stop the thread."""
        with self._condition:
            self._closed = True
            for request in self._waiting:
                request.send(NotReady("this worker is stopping"))
            self._waiting.clear()
            self._condition.notify()
        self._thread.join(5)

    async def _results(
        self, texts: Sequence[str], max_new_tokens: int | None, timeout_s: float, *, pieces: bool
    ) -> "AsyncGenerator[Piece | GenerationResult]":
        request = _Request(texts, max_new_tokens, pieces, asyncio.get_running_loop())
        submitted_at = self._clock()
        self._put(request, timeout_s)
        try:
            async with asyncio.timeout(timeout_s) as waiting:
                begun = await request.results.get()
            result = begun or await request.results.get()
            while not isinstance(result, Exception):
                assert result is not None
                yield result
                if isinstance(result, GenerationResult):
                    return
                result = await request.results.get()
            raise result
        except TimeoutError as error:
            if waiting.expired():
                raise DeadlinePassed("the deadline passed before the work began") from error
            raise
        finally:
            self._leave(request, self._clock() - submitted_at, timeout_s)

    def _leave(self, request: _Request, age_s: float, timeout_s: float) -> None:
        """Drop a request whose caller left. Only a caller who left while waiting teaches the admission its patience."""
        request.cancelled = True
        with self._condition, contextlib.suppress(ValueError):
            self._waiting.remove(request)
            self._admission.hung_up(age_s, timeout_s)

    def _put(self, request: _Request, timeout_s: float) -> None:
        with self._condition:
            if self._closed:
                raise NotReady("this worker is stopping")
            waiting = sum(len(other.texts) for other in self._waiting)
            if waiting and waiting + len(request.texts) > self._max_queue:
                raise QueueFull(f"{waiting} texts are waiting")
            self._admission.check(
                waiting + self._running // 2, timeout_s
            )  # on average, half of the running request is done
            self._waiting.append(request)
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                request = self._waiting.popleft()
                self._running = 0 if request.cancelled else len(request.texts)
            if request.cancelled:
                continue
            began_at = self._clock()
            try:
                self._serve(request)
            except Exception as error:  # the request fails with it; the thread goes on
                request.send(error)
            with self._condition:
                self._admission.worked(0 if request.cancelled else self._running, self._clock() - began_at)
                self._running = 0

    def _serve(self, request: _Request) -> None:
        runtime, generation = self._current() or (None, 0)
        if runtime is None or isinstance(runtime, Runtime):
            request.send(NotReady("no champion that generates text is loaded yet"))
            return
        request.send(None)  # begun
        if request.pieces:
            pieces = []
            for piece in runtime.pieces(runtime.encode(request.texts[0]), request.max_new_tokens):
                if request.cancelled:
                    return
                pieces.append(piece)
                request.send(piece)
            generated = [runtime.joined(pieces)]
        else:
            generated = runtime.generate(request.texts, request.max_new_tokens, cancelled=lambda: request.cancelled)
        request.send(GenerationResult(runtime, generation, generated))
