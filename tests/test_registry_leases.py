"""Leases, heartbeats and positions: tokens grow, silence is noticed, offsets never go back."""

import random
from datetime import timedelta

from serving.registry.registry import Registry
from tests.support import registries
from tests.support.registries import START, Clock

url, clock, registry = registries.url, registries.clock, registries.registry


def test_a_lease_has_one_holder_and_its_token_grows(registry: Registry, clock: Clock) -> None:
    assert registry.acquire_lease("scheduler", "a", 10) == 1
    assert registry.acquire_lease("other", "b", 10) == 1
    clock.advance(9)
    assert registry.acquire_lease("scheduler", "b", 10) is None
    assert registry.acquire_lease("scheduler", "a", 10) == 1  # renewed
    clock.advance(9)
    assert registry.acquire_lease("scheduler", "b", 10) is None
    clock.advance(1)
    assert registry.acquire_lease("scheduler", "b", 10) == 2  # expired
    registry.release_lease("scheduler", "a")
    assert registry.acquire_lease("scheduler", "a", 10) is None
    registry.release_lease("scheduler", "b")
    assert registry.acquire_lease("scheduler", "b", 10) == 3  # released in between


def test_whoever_comes_and_goes_tokens_never_go_back(registry: Registry, clock: Clock) -> None:
    draw, newest, holder, until = random.Random(7), 0, "", START
    for _ in range(150):
        clock.advance(draw.choice([0, 1, 4]))
        name = draw.choice("abc")
        if draw.random() < 0.2:
            registry.release_lease("scheduler", name)
            holder = "" if name == holder else holder
            continue
        token = registry.acquire_lease("scheduler", name, 5)
        if holder not in ("", name) and until > clock.now:
            assert token is None
            continue
        assert token == (newest if name == holder else newest + 1)
        newest, holder, until = token or 0, name, clock.now + timedelta(seconds=5)


def test_workers_are_those_heard_of_lately(registry: Registry, clock: Clock, url: str) -> None:
    registry.heartbeat("1", "h", model_version=None, generation=0, error="loading")
    clock.advance(20)
    registry.heartbeat("2", "h" * 200, model_version="v1", generation=1, error=None)
    assert [w.worker for w in registry.workers()] == ["1", "2"]
    assert [w.worker for w in registry.workers(within_s=19)] == ["2"]
    registry.heartbeat("1", "h", model_version="v1", generation=1, error=None)
    assert {(w.worker, w.error, w.seen_at) for w in registry.workers()} == {
        ("1", None, clock.now),
        ("2", None, clock.now),
    }
    clock.advance(25 * 3600)
    registry.heartbeat("3", "h", model_version="v1", generation=1, error=None)
    assert [w.worker for w in registry.workers(within_s=1e7)] == ["3"]


def test_positions_never_go_back(registry: Registry) -> None:
    registry.record_positions({"t/0": 2**40, "t/1": 0})
    registry.record_positions({"t/0": 7, "t/1": 1, "u/0": 3})
    registry.record_positions({})
    assert registry.positions() == {"t/0": 2**40, "t/1": 1, "u/0": 3}
