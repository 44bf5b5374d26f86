"""Rounds: one at a time, resumed, and ended once."""

import pytest

from schemas.records import RoundState
from schemas.reports import EvaluationReport, Verdict
from serving.registry.registry import Registry, RoundOver, UnknownRound
from tests.support import registries
from tests.support.registries import START, Clock, add_versions, begin, gate_report

url, clock, registry = registries.url, registries.clock, registries.registry


def test_one_unfinished_round_at_a_time(registry: Registry, clock: Clock) -> None:
    record = registry.claim_round(reason="200 feedback", cut={"t/0": 7}, token=None)
    assert record is not None
    assert record == registry.unfinished_round() == registry.round(record.round_id)
    assert (record.state, record.cut, record.created_at) == (RoundState.CLAIMED, {"t/0": 7}, START)
    assert registry.claim_round(reason="again", cut={}, token=None) is None
    registry.start_round(record.round_id)
    assert registry.claim_round(reason="again", cut={}, token=None) is None
    registry.finish_round(record.round_id, RoundState.AWAITING_APPROVAL, detail="passed")
    assert registry.claim_round(reason="again", cut={}, token=None) is None
    with pytest.raises(RoundOver):
        registry.start_round(record.round_id)

    registry.finish_round(record.round_id, RoundState.REJECTED, detail="no")
    clock.advance(-60)  # a clock that goes back does not change the order
    later = registry.claim_round(reason="again", cut={}, token=None)
    assert later is not None
    assert [r.round_id for r in registry.rounds()] == [later.round_id, record.round_id]


def test_a_round_that_dies_is_started_again_against_the_champion_of_now(registry: Registry, clock: Clock) -> None:
    add_versions(registry, "v1")
    record = begin(registry)
    clock.advance(100)
    registry.promote("v1", expected=None, token=None, actor="ada")

    again = registry.start_round(record.round_id)

    assert (record.attempts, again.attempts) == (1, 2)
    assert (record.champion_version, again.champion_version) == (None, "v1")
    assert (again.started_at, again.heartbeat_at) == (START, clock.now)


def test_news_of_a_round_is_kept_and_beats(registry: Registry, clock: Clock) -> None:
    record = begin(registry)
    clock.advance(3)
    report = EvaluationReport(
        model_version="v1", split="reference", n=9, accuracy=1, macro_f1=1, nll=0, brier=0, ece=0, ece_null_99=0
    )
    registry.update_round(
        record.round_id,
        step="gates",
        progress=0.5,
        cut={"t/0": 9},
        evaluations={"candidate": report},
        gate_report=gate_report(Verdict.FAIL),
    )
    clock.advance(3)
    registry.update_round(record.round_id)

    found = registry.round(record.round_id)
    assert (found.step, found.progress, found.cut, found.heartbeat_at) == ("gates", 0.5, {"t/0": 9}, clock.now)
    assert found.evaluations == {"candidate": report}
    assert found.gate_report == gate_report(Verdict.FAIL)
    with pytest.raises(ValueError, match="stage, state"):
        registry.update_round(record.round_id, state=RoundState.PROMOTED, stage="x")
    with pytest.raises(ValueError, match="progress"):
        registry.update_round(record.round_id, progress=2)
    with pytest.raises(UnknownRound):
        registry.update_round("no such round")
    assert registry.round(record.round_id) == found


def test_a_round_ends_once(registry: Registry, clock: Clock) -> None:
    record = begin(registry)
    for state in (RoundState.PROMOTED, RoundState.RUNNING, RoundState.CLAIMED):
        if state is not RoundState.RUNNING:
            with pytest.raises(ValueError, match=state.value):
                registry.finish_round(record.round_id, state, detail="x")
    clock.advance(1)
    registry.finish_round(record.round_id, RoundState.REJECTED, detail="worse")
    registry.finish_round(record.round_id, RoundState.REJECTED, detail="said again")

    ended = registry.round(record.round_id)
    assert (ended.state, ended.detail, ended.finished_at) == (RoundState.REJECTED, "worse", clock.now)
    with pytest.raises(RoundOver, match="rejected"):
        registry.finish_round(record.round_id, RoundState.FAILED, detail="x")
    with pytest.raises(RoundOver):
        registry.start_round(record.round_id)
    with pytest.raises(RoundOver):
        registry.update_round(record.round_id, step="x")
    with pytest.raises(UnknownRound):
        registry.finish_round("no such round", RoundState.FAILED, detail="x")


def test_the_last_cut_is_that_of_the_newest_round_that_did_not_fail(registry: Registry) -> None:
    assert registry.last_cut() == {}
    registry.finish_round(begin(registry, cut={"t/0": 5}).round_id, RoundState.REJECTED, detail="x")
    assert registry.last_cut() == {"t/0": 5}
    registry.finish_round(begin(registry, cut={"t/0": 9}).round_id, RoundState.FAILED, detail="x")
    assert registry.last_cut() == {"t/0": 5}
