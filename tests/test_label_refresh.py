"""The taxonomy read again: never on the event loop, one read at a time, bounded in rate and in wait."""

import asyncio
import threading

import pytest

from serving.asgi import Refused
from serving.contract import FeedbackRequest
from serving.feedback import Feedback
from serving.label_refresh import LabelRefresh
from tests.test_batching import Clock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Hanging:
    """A registry that answers when it is let."""

    def __init__(self) -> None:
        self.let, self.reads = threading.Event(), 0

    def __call__(self) -> list[str]:
        self.reads += 1
        assert self.let.wait(10)
        return ["cooking", "new"]


def rules(refresh: LabelRefresh) -> Feedback:
    return Feedback("classification", max_chars=100, labels=lambda: ["cooking"], refresh=refresh)


def correction(label: str) -> FeedbackRequest:
    return FeedbackRequest(prediction_id="p", kind="correction", value=label)


async def test_a_hung_registry_holds_neither_the_loop_nor_known_labels_nor_more_than_one_thread() -> None:
    registry = Hanging()
    feedback = rules(LabelRefresh(registry, wait_s=0.05))
    asked = [asyncio.create_task(feedback.checked(correction("new"))) for _ in range(50)]
    assert await feedback.checked(correction("cooking")) == "cooking"
    refused = await asyncio.gather(*asked, return_exceptions=True)
    assert {(one.status, one.headers["Retry-After"]) for one in refused if isinstance(one, Refused)} == {(503, "2")}
    assert len(refused) == 50
    assert registry.reads == 1
    registry.let.set()


async def test_a_new_label_is_found_and_an_unknown_one_costs_one_read_a_second() -> None:
    registry, clock = Hanging(), Clock()
    registry.let.set()
    feedback = rules(LabelRefresh(registry, clock))
    assert await feedback.checked(correction("new")) == "new"
    for _ in range(20):
        with pytest.raises(Refused) as refused:
            await feedback.checked(correction("unknown"))
        assert refused.value.status == 422
    assert registry.reads == 1
    clock.now += 1.5
    with pytest.raises(Refused):
        await feedback.checked(correction("unknown"))
    assert registry.reads == 2


async def test_a_registry_that_is_away_is_no_reason_to_call_a_label_unknown() -> None:
    def away() -> list[str]:
        raise ConnectionError("the registry is away")

    with pytest.raises(Refused) as refused:
        await rules(LabelRefresh(away)).checked(correction("new"))
    assert refused.value.status == 503
    assert b"the registry is away" in refused.value.body
