"""The micro-batcher on a tiny real model whose calls a test can hold back: order, sharing, deadlines, bounds, versions."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.admission import QueueFull
from serving.inference.batching import DeadlinePassed, MicroBatcher, NotReady, QueuedRequest, cut, turn
from tests.support.inference import TEXTS, Clock, Held
from tests.support.versions import copied

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def runtime(version: Path) -> Held:
    return Held(version)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batcher(runtime: Held, clock: Clock) -> Iterator[MicroBatcher]:
    made = MicroBatcher(lambda: (runtime, 1), max_batch=8, max_queue=300, clock=clock)
    yield made
    runtime.allow(math.inf)
    made.close()


async def test_answers_are_those_of_the_model_in_the_order_asked(batcher: MicroBatcher, runtime: Held) -> None:
    sizes = [1, 30, 2, 1, 7]
    asked = [TEXTS[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))]
    answers = await asyncio.gather(*(batcher.submit(texts, 10) for texts in asked))
    assert max(runtime.calls) <= 8
    for texts, answer in zip(asked, answers, strict=True):
        assert np.abs(answer.probabilities - runtime.probabilities(texts)).max() < 1e-5


async def test_one_text_does_not_wait_behind_256(batcher: MicroBatcher, runtime: Held) -> None:
    held = await runtime.hold(batcher)
    big = asyncio.create_task(batcher.submit(TEXTS[:256], 10))
    await asyncio.sleep(0)
    small = asyncio.create_task(batcher.submit([TEXTS[0]], 10))
    await asyncio.sleep(0)
    runtime.allow(1 + 8)  # the held text and one turn
    await asyncio.wait_for(small, 10)
    assert not big.done()
    runtime.allow(math.inf)
    await asyncio.gather(held, big)


async def test_many_of_one_text_do_not_starve_256(batcher: MicroBatcher) -> None:
    big = asyncio.create_task(batcher.submit(TEXTS[:256], 10))
    answered = 0

    async def caller() -> None:
        nonlocal answered
        while not big.done():
            await batcher.submit([TEXTS[0]], 10)
            answered += 1

    await asyncio.wait_for(asyncio.gather(big, *(caller() for _ in range(8))), 30)
    assert answered >= 8


async def test_a_late_request_is_refused_before_any_work(batcher: MicroBatcher, runtime: Held, clock: Clock) -> None:
    held = await runtime.hold(batcher)
    late = asyncio.create_task(batcher.submit(TEXTS[:4], 5))
    patient = asyncio.create_task(batcher.submit(TEXTS[4:6], 50))
    await asyncio.sleep(0)
    runtime.calls.clear()
    clock.now = 20
    runtime.allow(math.inf)
    with pytest.raises(DeadlinePassed):
        await late
    await asyncio.gather(held, patient)
    assert sum(runtime.calls) == 1 + 2


async def test_the_queue_is_bounded_and_frees_itself(batcher: MicroBatcher, runtime: Held) -> None:
    held = await runtime.hold(batcher)
    waiting = [asyncio.create_task(batcher.submit(TEXTS[:100], 10)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await batcher.submit(TEXTS[:100], 10)
    runtime.allow(math.inf)
    await asyncio.gather(held, *waiting)
    await batcher.submit(TEXTS[:300], 10)


async def test_what_the_model_raises_fails_those_requests_alone(batcher: MicroBatcher, runtime: Held) -> None:
    held = await runtime.hold(batcher)

    def broken(encoded: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        raise RuntimeError(f"out of memory for {len(encoded)} rows")

    runtime.run = broken  # type: ignore[method-assign]
    failing = asyncio.create_task(batcher.submit(TEXTS[:20], 10))
    await asyncio.sleep(0)
    runtime.allow(math.inf)
    await held
    with pytest.raises(RuntimeError, match="out of memory"):
        await failing
    del runtime.run
    for _ in range(3):  # nothing of the failed request is still counted
        await batcher.submit(TEXTS[:300], 10)


async def test_a_request_keeps_the_version_that_it_began_with(version: Path, tmp_path: Path) -> None:
    old = Held(version)
    new = Held(copied(version, tmp_path / "new", model_version="new"))
    live = [(old, 1)]
    batcher = MicroBatcher(lambda: live[0], max_batch=4, max_queue=300)
    old.allow(0)
    began = asyncio.create_task(batcher.submit(TEXTS[:60], 10))
    await asyncio.to_thread(old.entered.wait, 10)
    live[0] = (new, 2)
    fresh = asyncio.create_task(batcher.submit(TEXTS[:60], 10))
    await asyncio.sleep(0)
    old.allow(math.inf)
    first, second = await asyncio.gather(began, fresh)
    batcher.close()
    assert (first.runtime, first.generation, sum(old.calls)) == (old, 1, 60)
    assert (second.runtime, second.generation, sum(new.calls)) == (new, 2, 60)


async def test_without_a_model_and_after_the_end_it_says_so(runtime: Held) -> None:
    batcher = MicroBatcher(lambda: None, max_batch=8, max_queue=10)
    with pytest.raises(NotReady):
        await batcher.submit(["text"], 10)
    batcher.close()
    with pytest.raises(NotReady):
        await batcher.submit(["text"], 10)


def test_rows_are_cut_where_it_costs_least() -> None:
    assert cut([5]) == [(0, 1)]
    assert cut([5] * 20) == [(0, 20)]
    assert cut([4, 4, 4, 4, 90]) == [(0, 4), (4, 5)], "padding four short rows to 90 costs more than a call"
    assert cut([10, 11, 12]) == [(0, 3)]
    assert cut([]) == []


def test_a_turn_has_a_text_of_each_and_what_is_about_as_long() -> None:
    loop = asyncio.new_event_loop()
    lengths = [[30, 5, 6, 50], [40], [9, 31, 5, 7], [6, 6]]
    requests = [
        QueuedRequest(
            [""] * len(own),
            0.0,
            loop.create_future(),
            encoded=[[0] * length for length in own],
            remaining=sorted(range(len(own)), key=own.__getitem__),
        )
        for own in lengths
    ]
    loop.close()

    def taken(most: int) -> list[tuple[int, int]]:
        return [(requests.index(request), len(request.encoded[n])) for request, n in turn(requests, most)]

    assert taken(7) == [(0, 5), (1, 40), (2, 5), (3, 6), (0, 6), (3, 6), (2, 7)]
    requests = [request for request in requests if request.remaining]
    assert taken(2) == [(0, 30), (1, 31)]
    requests = [request for request in requests if request.remaining]
    assert taken(8) == [(0, 50), (1, 9)]
    assert not any(request.remaining for request in requests)
    assert turn([], 8) == []
