"""One generation at a time: requests that want text wait their turn on a worker's one thread.

Turns each request's texts into answers, or into the pieces of one as they are written. api.py asks; it runs what live.py holds.
It deliberately knows no HTTP, no registry and no torch.

A request runs on the one version that is live as its work begins: no answer mixes versions. Its texts are written together.
Whoever stops listening stops the work at the next token.
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
from serving.inference.outputs import Said
from serving.privacy.anonymise import anonymise

if TYPE_CHECKING:
    from serving.inference.decoder_runtime import Piece, Writer, Written


@dataclass(frozen=True)
class TextAnswer:
    """What was written to each text of a request, and the version and generation that wrote it."""

    runtime: "Writer"
    generation: int
    written: list["Written"]

    @property
    def manifest(self) -> ModelManifest:
        """Of the version."""
        return self.runtime.manifest

    @property
    def tokens(self) -> int:
        """How many were written."""
        return sum(len(one.tokens) for one in self.written)

    def said(self, _coverage: float | None) -> Iterator[Said]:
        """The text and how likely people accept it. What was written goes into the event as what was asked does: anonymised."""
        confidence = self.runtime.confidence([one.logprobs for one in self.written])
        for one, sure in zip(self.written, confidence, strict=True):
            yield (
                {"text": one.text, "confidence": sure},
                {"label": anonymise(one.text.strip()), "confidence": sure, "probabilities": {}},
            )


@dataclass(eq=False)
class _Request:
    texts: Sequence[str]
    most: int | None
    pieces: bool
    loop: asyncio.AbstractEventLoop
    told: "asyncio.Queue[Piece | TextAnswer | Exception | None]" = field(default_factory=asyncio.Queue)
    gone: bool = False

    def tell(self, what: "Piece | TextAnswer | Exception | None") -> None:
        """From the thread to whoever waits."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who waited
            self.loop.call_soon_threadsafe(self.told.put_nowait, what)


class GenerationQueue:
    """One worker's queue and thread.

    Args:
        current: the live version and its generation, asked as work begins.
        max_queue: texts waiting before QueueFull; an idle queue takes a request of any size.
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
        self._writing = 0  # texts of the answer at hand
        self._admission = Admission(clock)
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    async def write(self, texts: Sequence[str], most: int | None, timeout_s: float) -> TextAnswer:
        """Answers of `most` tokens at most, if work begins within `timeout_s`. Raises QueueFull, DeadlinePassed or NotReady."""
        async with contextlib.aclosing(self._ask(texts, most, timeout_s, pieces=False)) as told:
            async for found in told:
                if isinstance(found, TextAnswer):
                    return found
        raise NotReady("this worker is stopping")

    def stream(self, text: str, most: int | None, timeout_s: float) -> "AsyncGenerator[Piece | TextAnswer]":
        """The pieces of one answer as they are written, then all of it; raises as `write`, before the first."""
        return self._ask([text], most, timeout_s, pieces=True)

    def close(self) -> None:
        """Finish the answer at hand, refuse what waits, and stop the thread."""
        with self._condition:
            self._closed = True
            for request in self._waiting:
                request.tell(NotReady("this worker is stopping"))
            self._waiting.clear()
            self._condition.notify()
        self._thread.join(5)

    async def _ask(
        self, texts: Sequence[str], most: int | None, timeout_s: float, *, pieces: bool
    ) -> "AsyncGenerator[Piece | TextAnswer]":
        request = _Request(texts, most, pieces, asyncio.get_running_loop())
        asked_at = self._clock()
        self._put(request, timeout_s)
        try:
            async with asyncio.timeout(timeout_s) as waiting:
                begun = await request.told.get()
            found = begun or await request.told.get()
            while not isinstance(found, Exception):
                assert found is not None
                yield found
                if isinstance(found, TextAnswer):
                    return
                found = await request.told.get()
            raise found
        except TimeoutError as error:
            if waiting.expired():
                raise DeadlinePassed("the deadline passed before the work began") from error
            raise
        finally:
            self._leave(request, self._clock() - asked_at, timeout_s)

    def _leave(self, request: _Request, age_s: float, timeout_s: float) -> None:
        """Forget a request whose caller left; who leaves in the middle of an answer says nothing of the queue."""
        request.gone = True
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
            self._admission.check(waiting + self._writing // 2, timeout_s)  # on average half of it is done
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
                self._writing = 0 if request.gone else len(request.texts)
            if request.gone:
                continue
            began_at = self._clock()
            try:
                self._answer(request)
            except Exception as error:  # whatever the model raises belongs to this request, not to the thread
                request.tell(error)
            with self._condition:
                self._admission.worked(0 if request.gone else self._writing, self._clock() - began_at)
                self._writing = 0

    def _answer(self, request: _Request) -> None:
        writer, generation = self._current() or (None, 0)
        if writer is None or isinstance(writer, Runtime):
            request.tell(NotReady("no champion that writes is loaded yet"))
            return
        request.tell(None)  # begun
        if request.pieces:
            found = []
            for piece in writer.pieces(writer.encode(request.texts[0]), request.most):
                if request.gone:
                    return
                found.append(piece)
                request.tell(piece)
            written = [writer.whole(found)]
        else:
            written = writer.write(request.texts, request.most, gone=lambda: request.gone)
        request.tell(TextAnswer(writer, generation, written))
