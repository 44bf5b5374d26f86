"""Callers who hang up: their work is skipped, their place is free, and a queue longer than their patience is refused."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.http.asgi import ClientGone, Message, Request
from serving.inference.admission import Admission, QueueFull
from serving.inference.batching import MicroBatcher
from tests.support.inference import TEXTS, Clock, Held

pytestmark = pytest.mark.anyio
MORE_THAN_MAY_WAIT = [*TEXTS, "one more"]  # only an empty queue takes them


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runtime(version: Path) -> Held:
    return Held(version)


@pytest.fixture
def batcher(runtime: Held, clock: Clock) -> Iterator[MicroBatcher]:
    made = MicroBatcher(lambda: (runtime, 1), max_batch=8, max_queue=300, clock=clock)
    yield made
    runtime.allow(math.inf)
    made.close()


async def test_work_whose_caller_left_is_never_run(batcher: MicroBatcher, runtime: Held) -> None:
    held = await runtime.hold(batcher)
    left = [asyncio.create_task(batcher.submit(TEXTS[:60], 10)) for _ in range(4)]
    stays = asyncio.create_task(batcher.submit(TEXTS[:3], 10))
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    runtime.calls.clear()
    runtime.allow(math.inf)
    await asyncio.gather(held, stays)
    assert sum(runtime.calls) == 1 + 3


async def test_who_leaves_frees_the_place_in_the_queue_at_once(batcher: MicroBatcher, runtime: Held) -> None:
    held = await runtime.hold(batcher)
    for _ in range(20):  # 4,000 texts, of which 300 may wait
        task = asyncio.create_task(batcher.submit(TEXTS[:200], 10))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    most = asyncio.create_task(batcher.submit(TEXTS[:299], 10))  # as many as may wait beside the one that runs
    await asyncio.sleep(0)
    assert not most.done()
    runtime.allow(math.inf)
    await asyncio.gather(held, most)
    await batcher.submit(MORE_THAN_MAY_WAIT, 10)


async def test_a_request_that_was_begun_stops_when_its_caller_leaves(batcher: MicroBatcher, runtime: Held) -> None:
    runtime.allow(8)  # one turn
    runtime.entered.clear()
    big = asyncio.create_task(batcher.submit(TEXTS[:256], 10))
    await asyncio.to_thread(runtime.entered.wait, 10)
    big.cancel()
    await asyncio.gather(big, return_exceptions=True)
    runtime.allow(math.inf)
    await batcher.submit(TEXTS[:1], 10)
    assert sum(runtime.calls) <= 2 * 8 + 1
    await batcher.submit(MORE_THAN_MAY_WAIT, 10)


def test_patience_is_learnt_from_those_who_leave_and_grows_again(clock: Clock) -> None:
    admission = Admission(clock)
    admission.check(10_000, 10)  # nothing is known yet
    admission.worked(100, 1.0)
    admission.check(1_000, 10)  # ten seconds ahead, ten to wait
    with pytest.raises(QueueFull) as refused:
        admission.check(1_400, 10)
    assert refused.value.retry_after_s == 4
    for _ in range(100):
        admission.hung_up(2.0, 10)
    admission.check(90, 10)
    with pytest.raises(QueueFull, match=r"the expected wait is 1\.2 s, callers wait 1\.0 s"):
        admission.check(120, 10)
    clock.now += 600
    admission.check(1_000, 10)


def test_callers_who_leave_at_once_do_not_close_the_queue_to_others(clock: Clock) -> None:
    admission = Admission(clock)
    admission.worked(100, 1.0)
    for _ in range(1_000):
        admission.hung_up(0.001, 10)
    admission.check(12, 10)


@pytest.mark.parametrize("patience_s", [0.5, 2.0, 5.0])
async def test_goodput_under_three_times_the_load_stays_near_capacity(patience_s: float, clock: Clock) -> None:
    """Simulated: one server of 50 requests a second, 150 a second arrive, each leaves after its patience."""
    queue: list[float] = []
    admission, good, served_until = Admission(clock), 0, 0.0
    admission.worked(50, 1.0)
    for n in range(150 * 60):
        clock.now = n / 150
        while queue and served_until <= clock.now:
            asked_at = queue.pop(0)
            begins = max(served_until, asked_at)
            if begins - asked_at > patience_s:
                admission.hung_up(patience_s, 10)
                continue  # skipped: it costs nothing
            served_until = begins + 1 / 50
            if served_until - asked_at <= patience_s:
                good += 1
            else:
                admission.hung_up(patience_s, 10)  # the work is lost
        try:
            admission.check(len(queue), 10)
        except QueueFull:
            continue
        queue.append(clock.now)
    assert good >= 0.8 * 50 * 60


class Connection:
    """A caller's side: hangs up when told."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.watched = 0

    async def receive(self) -> Message:
        self.watched += 1
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_a_caller_who_hangs_up_cancels_the_work() -> None:
    connection, cancelled = Connection(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    asked = asyncio.create_task(Request("POST", {}, connection.receive).unless_gone(work(), 0.0))
    connection.left.set()
    with pytest.raises(ClientGone):
        await asyncio.wait_for(asked, 60)
    assert cancelled.is_set()


async def test_a_quick_answer_is_not_watched_and_errors_go_through() -> None:
    connection = Connection()
    request = Request("POST", {}, connection.receive)

    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    async def fail() -> None:
        raise QueueFull("full")

    assert await request.unless_gone(answer(), 5.0) == 7
    with pytest.raises(QueueFull):
        await request.unless_gone(fail(), 0.0)
    assert connection.watched == 0


async def test_who_cancels_from_outside_is_not_taken_for_a_caller_who_left() -> None:
    asked = asyncio.create_task(Request("POST", {}, Connection().receive).unless_gone(asyncio.Event().wait(), 0.0))
    await asyncio.sleep(0.01)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
