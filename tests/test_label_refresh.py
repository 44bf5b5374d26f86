"""The taxonomy read again: never on the event loop, one read at a time, bounded in rate and in wait."""

import asyncio
import threading

import pytest

from schemas.events import FeedbackData, new_id
from schemas.labels import LabelMap
from schemas.records import Label
from serving.http.feedback_values import FeedbackChecker, LabelNotInUse
from serving.http.label_refresh import LabelRefresh, RegistryAway, checked_feedback
from tests.support.inference import Clock

pytestmark = pytest.mark.anyio
OLD, NEW = LabelMap([Label(name="cooking")]), LabelMap([Label(name="cooking"), Label(name="new")])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Hanging:
    """A registry that answers when it is let, and the labels as the worker knows them."""

    def __init__(self) -> None:
        self.let, self.reads, self.labels = threading.Event(), 0, OLD

    def __call__(self) -> LabelMap:
        self.reads += 1
        assert self.let.wait(60)
        self.labels = NEW
        return NEW

    def checker(self) -> FeedbackChecker:
        return FeedbackChecker("m", "classification", secret=lambda: "s", max_chars=100, labels=lambda: self.labels)


def correction(label: str) -> FeedbackData:
    return FeedbackData(feedback_id=new_id(), prediction_id=new_id(), model_name="m", kind="correction", value=label)


async def test_a_hung_registry_holds_neither_the_loop_nor_known_labels_nor_more_than_one_thread() -> None:
    registry = Hanging()
    checker, refresh = registry.checker(), LabelRefresh(registry, wait_s=0.05)
    waiting = [asyncio.create_task(checked_feedback(checker, refresh, correction("new"))) for _ in range(50)]
    assert (await checked_feedback(checker, refresh, correction("cooking"))).value == "cooking"
    refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in refused] == [RegistryAway] * 50
    assert registry.reads == 1
    registry.let.set()


async def test_a_new_label_is_found_and_an_unknown_one_costs_one_read_a_second() -> None:
    registry, clock = Hanging(), Clock()
    registry.let.set()
    checker, refresh = registry.checker(), LabelRefresh(registry, clock)
    assert (await checked_feedback(checker, refresh, correction("new"))).value == "new"
    for _ in range(20):
        with pytest.raises(LabelNotInUse):
            await checked_feedback(checker, refresh, correction("unknown"))
    assert registry.reads == 1
    clock.now += 1.5
    with pytest.raises(LabelNotInUse):
        await checked_feedback(checker, refresh, correction("unknown"))
    assert registry.reads == 2


async def test_a_registry_that_is_away_is_no_reason_to_call_a_label_unknown() -> None:
    def away() -> LabelMap:
        raise ConnectionError("the registry is away")

    with pytest.raises(RegistryAway, match="the registry is away"):
        await checked_feedback(Hanging().checker(), LabelRefresh(away), correction("new"))
