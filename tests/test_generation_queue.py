"""Whoever wants text waits their turn: order, deadlines, bounds, versions, pieces, and callers who go away."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from serving.inference.admission import QueueFull
from serving.inference.batching import DeadlinePassed, NotReady
from serving.inference.decoder_runtime import DecoderRuntime
from serving.inference.encoder_runtime import Runtime
from serving.inference.generation_queue import GenerationQueue, GenerationResult
from serving.inference.text_generator import GeneratedText, Piece

pytestmark = pytest.mark.anyio


class Held(DecoderRuntime):
    """A version whose model waits for leave before each token, and remembers how many it wrote."""

    def __init__(self, directory: Path) -> None:
        self.leave, self.entered, self.steps = threading.Semaphore(0), threading.Event(), 0
        super().__init__(directory)
        self.model.register_forward_pre_hook(self.wait)

    def wait(self, *_: object) -> None:
        self.entered.set()
        assert self.leave.acquire(timeout=60)
        self.steps += 1

    def go_on(self, tokens: int = 10_000) -> None:
        self.leave.release(tokens)

    async def hold(self, queue: GenerationQueue) -> "asyncio.Task[GenerationResult]":
        """Keep the queue's thread busy with one text."""
        self.entered.clear()
        task = asyncio.create_task(queue.generate(["held"], 4, 10))
        await asyncio.to_thread(self.entered.wait, 10)
        return task


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def writer(text_version: Path) -> Held:
    return Held(text_version)


@pytest.fixture
def queue(writer: Held) -> Iterator[GenerationQueue]:
    made = GenerationQueue(lambda: (writer, 1), max_queue=3)
    yield made
    writer.go_on()
    made.close()


async def test_answers_come_whole_or_in_pieces_that_make_the_whole(queue: GenerationQueue, writer: Held) -> None:
    writer.go_on()
    answer = await queue.generate(["hello", "a"], 6, 10)
    assert (answer.runtime, answer.generation) == (writer, 1)
    assert [one.text for one in answer.generated] == [one.text for one in writer.generate(["hello", "a"], 6)]
    *pieces, whole = [found async for found in queue.stream("hello", 6, 10)]
    assert isinstance(whole, GenerationResult)
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == whole.generated[0].text
    assert whole.generated[0].text == answer.generated[0].text


async def test_one_at_a_time_in_order_on_the_version_live_as_work_begins(text_version: Path) -> None:
    first, second = Held(text_version), Held(text_version)
    live: list[tuple[Runtime | DecoderRuntime, int] | None] = [(first, 1)]
    queue = GenerationQueue(lambda: live[0], max_queue=9)
    held = await first.hold(queue)
    waiting = asyncio.create_task(queue.generate(["b"], 2, 10))
    await asyncio.sleep(0)
    live[0] = (second, 2)
    assert second.steps == 0
    first.go_on()
    second.go_on()
    assert (await held).generation == 1
    assert (await waiting).runtime is second
    live[0] = None
    with pytest.raises(NotReady):
        await queue.generate(["b"], 2, 10)
    queue.close()
    with pytest.raises(NotReady, match="stopping"):
        await queue.generate(["b"], 2, 10)


async def test_an_encoder_writes_nothing() -> None:
    encoder = Runtime.__new__(Runtime)
    queue = GenerationQueue(lambda: (encoder, 1), max_queue=9)
    with pytest.raises(NotReady, match="generates text"):
        await queue.generate(["b"], 2, 10)
    queue.close()


async def test_the_deadline_counts_until_work_begins(queue: GenerationQueue, writer: Held) -> None:
    held = await writer.hold(queue)
    with pytest.raises(DeadlinePassed):
        await queue.generate(["late"], 2, 0)
    with pytest.raises(DeadlinePassed):
        await anext(queue.stream("late", 2, 0))
    writer.go_on()
    assert len((await held).generated[0].tokens) == 4
    await queue.generate(["b"], 2, 10)
    assert writer.steps == 4 + 2, "nobody wrote for those who were late"


async def test_the_queue_is_bounded(queue: GenerationQueue, writer: Held) -> None:
    held = await writer.hold(queue)
    waiting = [asyncio.create_task(queue.generate(texts, 1, 10)) for texts in (["b"], ["c", "d"])]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="3 texts"):
        await queue.generate(["e"], 1, 10)
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)
    later = asyncio.create_task(queue.generate(["e"], 1, 10))
    writer.go_on()
    assert [len(answer.generated) for answer in await asyncio.gather(held, waiting[0], later)] == [1, 1, 1]


@pytest.mark.parametrize("pieces", [True, False])
async def test_who_goes_away_stops_the_work(queue: GenerationQueue, writer: Held, pieces: bool) -> None:
    async def listen() -> None:
        async for _ in queue.stream("hello", 200, 10):
            pass

    task = asyncio.create_task(listen() if pieces else leave(queue.generate(["hello"], 200, 10)))
    await asyncio.to_thread(writer.entered.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    writer.go_on()
    assert len((await queue.generate(["b"], 2, 10)).generated) == 1
    assert writer.steps <= 2 + 2


async def leave(answer: object) -> None:
    await answer  # type: ignore[misc]


async def test_what_the_model_raises_reaches_who_asked(text_version: Path) -> None:
    class Broken(DecoderRuntime):
        def generate(
            self, texts: Sequence[str], max_new_tokens: int | None = None, cancelled: Callable[[], bool] = lambda: False
        ) -> list[GeneratedText]:
            if texts == ["broken"]:
                raise FloatingPointError("no number")
            return super().generate(texts, max_new_tokens, cancelled)

    broken = Broken(text_version)
    queue = GenerationQueue(lambda: (broken, 1), max_queue=9)
    with pytest.raises(FloatingPointError):
        await queue.generate(["broken"], 2, 10)
    assert len((await queue.generate(["b"], 2, 10)).generated) == 1
    queue.close()


async def test_who_leaves_while_waiting_keeps_neither_a_place_nor_memory(queue: GenerationQueue, writer: Held) -> None:
    held = await writer.hold(queue)
    for _ in range(50):
        task = asyncio.create_task(queue.generate(["a", "b"], 4, 10))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    most = asyncio.create_task(queue.generate(["a", "b", "c"], 4, 10))  # as many as may wait
    await asyncio.sleep(0)
    assert not most.done()
    writer.go_on()
    await asyncio.gather(held, most)
