"""A hundred processes decide at once, some to promote, some to approve, some to roll back: each generation has one winner."""

import contextlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from schemas.records import RoundState
from serving.registry.registry import ChampionMoved, Registry, RoundOver
from tests.support import registries
from tests.support.manifests import manifest
from tests.support.registries import add_versions, begin

url, clock, registry = registries.url, registries.clock, registries.registry

PROCESSES, GENERATIONS = 100, 3
CONNECTIONS = 40  # at once, to a Postgres that other tests use too
_start: Any = None
_slots: Any = None


def _hold(start: Any, slots: Any) -> None:
    global _start, _slots  # one barrier for the life of a pool's process
    _start, _slots = start, slots


def _decide(url: str, n: int, champion: str, version: str, round_id: str) -> tuple[str, int | None, int]:
    """Return what was tried, the generation if it won, and the process: every process starts from the same champion."""
    action = ("promote", "approve", "roll back")[n % 3]
    _start.wait(120)
    with _slots, contextlib.closing(Registry(url, "m", busy_s=60)) as opened:
        try:
            if action == "promote":
                won = opened.promote(version, expected=champion, token=None, actor=f"process-{n}")
            elif action == "approve":
                approval = opened.approve(round_id, actor=f"process-{n}", reason="race", overrule=True)
                assert approval.champion is not None
                won = approval.champion
            else:
                won = opened.roll_back(to=None, expected=champion, actor=f"process-{n}", reason="race")
        except (ChampionMoved, RoundOver):
            return action, None, os.getpid()
        return action, won.generation, os.getpid()


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    held = (server.Barrier(PROCESSES), server.BoundedSemaphore(CONNECTIONS))
    with ProcessPoolExecutor(PROCESSES, server, initializer=_hold, initargs=held) as executor:
        yield executor


def judged(registry: Registry, version: str) -> str:
    """Return the id of a round whose candidate the gates left undecided."""
    registry.register_version(manifest(version), f"digest of {version}", servable=False)
    record = begin(registry)
    registry.update_round(record.round_id, candidate_version=version)
    registry.finish_round(record.round_id, RoundState.INSUFFICIENT, detail="few rows")
    return record.round_id


def test_of_a_hundred_decisions_at_once_one_wins_each_generation(
    pool: ProcessPoolExecutor, registry: Registry, url: str
) -> None:
    earlier = [f"earlier-{n}" for n in range(GENERATIONS + 1)]  # every generation may go to a rollback
    add_versions(registry, *earlier)
    for expected, version in zip([None, *earlier], earlier, strict=False):
        registry.promote(version, expected=expected, token=None, actor="gates")
    for generation in range(len(earlier) + 1, len(earlier) + 1 + GENERATIONS):
        live = registry.champion()
        assert live is not None
        add_versions(registry, f"promoted-{generation}")
        round_id = judged(registry, f"approved-{generation}")
        arguments = (live.model_version, f"promoted-{generation}", round_id)
        tasks = [pool.submit(_decide, url, n, *arguments) for n in range(PROCESSES)]
        results = [task.result(300) for task in tasks]

        winners = [(action, won) for action, won, _ in results if won is not None]
        assert [won for _, won in winners] == [generation]
        assert len({process for _, _, process in results}) == PROCESSES
        assert Counter(action for action, _, _ in results) == {"promote": 34, "approve": 33, "roll back": 33}
        now = registry.champion()
        assert now is not None
        assert now.generation == generation
        states = [version.state.value for version in registry.versions()]
        assert states.count("champion") == 1
        assert ("rolled back" in states) or winners[0][0] != "roll back"
    assert registry.verify_audit() == []
    assert [c.generation for c in registry.promotions()] == list(range(len(earlier) + GENERATIONS, 0, -1))
