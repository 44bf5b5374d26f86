"""Eight processes that start together: one wins, nothing is lost, and a killed one has done nothing."""

import contextlib
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from serving.registry.registry import ChampionMoved, Registry
from tests.support import registries
from tests.support.fakes import REPOSITORY
from tests.support.registries import add_versions, begin

url, clock, registry = registries.url, registries.clock, registries.registry

PROCESSES = 8
_start: Any = None


def _hold(start: Any) -> None:
    global _start  # noqa: PLW0603  # one barrier for the life of a pool's process
    _start = start


def _migrate(url: str, _n: int) -> object:
    _start.wait(60)
    with contextlib.closing(Registry(url, "m")) as opened:
        opened.migrate()
        return opened.champion()


def _claim(url: str, n: int) -> object:
    with contextlib.closing(Registry(url, "m")) as opened:
        opened.champion()  # connected before the start
        _start.wait(60)
        record = opened.claim_round(reason=f"process {n}", cut={}, token=None)
        return record and record.round_id


def _promote(url: str, n: int) -> object:
    with contextlib.closing(Registry(url, "m")) as opened:
        opened.champion()
        _start.wait(60)
        try:
            return opened.promote(f"v{n}", expected="v", token=None, actor=f"process {n}").model_version
        except ChampionMoved:
            return None


def _lease(url: str, n: int) -> object:
    with contextlib.closing(Registry(url, "m")) as opened:
        opened.champion()
        _start.wait(60)
        return opened.acquire_lease("scheduler", f"process {n}", 60)


def _write_all(url: str, n: int) -> object:
    with contextlib.closing(Registry(url, "m")) as opened:
        _start.wait(60)
        for step in range(10):
            opened.audit(f"process {n}", "write", {"step": step})
            opened.set_labels([f"label {step}"])
            opened.record_positions({"t/0": 10 * step + n})
        return None


def _take_sides(url: str, n: int) -> object:
    sides: dict[str, str] = {}
    with contextlib.closing(Registry(url, "m")) as opened:
        for step in range(20):
            _start.wait(60)
            sides |= opened.record_sides({f"key {step} {k}": f"process {n}" for k in range(20)})
    return sides


@pytest.fixture(scope="module")
def race() -> Iterator[Callable[[Callable[[str, int], object], str], list[object]]]:
    """Run a function in eight processes that start together; their answers."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(PROCESSES, spawn, initializer=_hold, initargs=(spawn.Barrier(PROCESSES),))

    def run(function: Callable[[str, int], object], url: str) -> list[object]:
        return [answer.result(120) for answer in [pool.submit(function, url, n) for n in range(PROCESSES)]]

    with pool:
        yield run


def test_eight_processes_migrate_an_empty_database(race: Any, url: str) -> None:
    assert race(_migrate, url) == [None] * PROCESSES


def test_of_eight_processes_one_claims_one_promotes_one_holds_the_lease(
    race: Any, registry: Registry, url: str
) -> None:
    add_versions(registry, "v", *(f"v{n}" for n in range(PROCESSES)))
    registry.promote("v", expected=None, token=None, actor="me")

    (claimed,) = filter(None, race(_claim, url))
    (promoted,) = filter(None, race(_promote, url))
    (token,) = filter(None, race(_lease, url))

    unfinished, champion = registry.unfinished_round(), registry.champion()
    assert unfinished is not None
    assert unfinished.round_id == claimed
    assert champion is not None
    assert (champion.model_version, champion.generation) == (promoted, 2)
    assert token == 1
    assert registry.verify_audit() == []


def test_eight_processes_write_and_no_write_is_lost(race: Any, registry: Registry, url: str) -> None:
    race(_write_all, url)

    assert len(registry.audit_rows()) == 10 * PROCESSES
    assert registry.verify_audit() == []
    assert registry.active_labels() == [f"label {step}" for step in range(10)]
    assert registry.positions() == {"t/0": 90 + PROCESSES - 1}


def test_eight_processes_agree_on_every_side(race: Any, registry: Registry, url: str) -> None:
    answers = race(_take_sides, url)

    assert len(answers[0]) == 400
    assert all(answer == answers[0] == registry.sides(answers[0]) for answer in answers)


def test_threads_share_one_registry(registry: Registry) -> None:
    def work(n: int) -> None:
        for step in range(5):
            registry.heartbeat(str(n), "h", model_version=None, generation=step, error=None)
            registry.audit(str(n), "step", {"step": step})
            registry.champion()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    assert {w.generation for w in registry.workers()} == {4}
    assert len(registry.audit_rows()) == 100
    assert registry.verify_audit() == []


def test_killed_in_the_middle_of_a_promotion_nothing_has_happened(registry: Registry, url: str) -> None:
    add_versions(registry, "v1")
    record = begin(registry)
    script = f"""
import os, signal
from serving.registry.audit import AuditLog
from serving.registry.registry import Registry
AuditLog.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Registry({url!r}, "m").promote("v1", expected=None, token=None, actor="gates", round_id={record.round_id!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False, timeout=60)

    assert killed.returncode == -signal.SIGKILL
    assert registry.champion() is None
    assert registry.round(record.round_id) == record
    again = registry.promote("v1", expected=None, token=None, actor="gates", round_id=record.round_id)
    assert again.generation == 1
