"""Settling by labels: the level holds whenever people stop, the power is what the policy promises, harm is noticed."""

from math import exp

import numpy as np
import pytest

from pipelines.gates import settling
from pipelines.gates.policy import Policy
from pipelines.gates.settling import Favours, favours, may_settle, settle, wins_needed
from pipelines.gates.settling_policy import SettlingPolicy
from schemas.events import utc_now
from schemas.queue import DecidedItem
from schemas.reports import GateReport, GateResult, Verdict
from schemas.targets import Task

WIN, LOSS, TIE = Favours.CANDIDATE, Favours.CHAMPION, Favours.NEITHER
HORIZON = 120


def passing(at: float, p: float) -> float:
    """The probability that a candidate with this share of wins ever passes, by recursion over all paths."""
    needed, paths, passed = wins_needed(at, HORIZON), np.array([1.0]), 0.0
    for n in range(1, HORIZON + 1):
        paths = p * np.append(0.0, paths) + (1 - p) * np.append(paths, 0.0)
        passed += float(paths[needed[n] :].sum())
        paths[needed[n] :] = 0.0
    return passed


@pytest.mark.parametrize("at", [0.3, 0.05, 0.025, 0.0125, 0.001, 0.0003])
def test_an_equal_candidate_passes_at_most_at_the_level_whenever_people_stop(at: float) -> None:
    assert passing(at, 0.5) <= at
    assert passing(at, 0.5) > 0.6 * at, "the level is hardly spent"
    assert passing(at, 0.45) < at / 2


def test_a_candidate_three_points_better_is_found_early_and_late() -> None:
    """Churn .07: wins .05, losses .02."""
    assert passing(0.025, 5 / 7) > 0.99
    assert passing(0.0012, 5 / 7) > 0.94
    assert settle([], 0.025, HORIZON, 0.05).more <= 50


def test_the_chance_of_passing_is_a_test_martingale() -> None:
    """Its mean under p = 1/2 never grows, and it starts at most at the level."""
    for at in (0.05, 0.002):
        chances = settling.chances(at, HORIZON, 0.5)
        assert chances[0][0] <= at
        for n in range(HORIZON):
            inner = slice(0, min(wins_needed(at, HORIZON)[n], n + 1))
            mean = 0.5 * (chances[n + 1][:-1] + chances[n + 1][1:])
            assert chances[n][inner] == pytest.approx(mean[inner])


def test_labels_in_a_row_pass_fail_or_end_as_hopeless() -> None:
    won = settle([WIN] * 20, 0.0125, HORIZON, 0.05)
    assert (won.verdict, won.more) == (Verdict.PASS, 0)
    assert won.wins < 12, "nine wins without a loss settle it"
    lost = settle([LOSS] * 20, 0.0125, HORIZON, 0.05)
    assert lost.verdict is Verdict.FAIL
    assert "worse than the champion" in lost.sentence
    even = settle([WIN, LOSS] * 60, 0.0125, HORIZON, 0.05)
    assert even.verdict is Verdict.INSUFFICIENT
    assert even.wins + even.losses < HORIZON, "people's time is not spent on the hopeless"


def test_a_verdict_once_reached_stays_whatever_labels_follow() -> None:
    """People may stop as soon as it is settled: labels that arrive in one batch are read in order."""
    early = settle([WIN] * 10 + [LOSS] * 10, 0.0125, HORIZON, 0.05)
    assert early.verdict is Verdict.PASS
    assert early.losses == 0


def test_ties_decide_nothing_and_are_expected_to_go_on() -> None:
    some, ties = settle([WIN, WIN], 0.0125, HORIZON, 0.05), settle([WIN, WIN, *[TIE] * 6], 0.0125, HORIZON, 0.05)
    assert (ties.wins, ties.losses, ties.ties, ties.verdict) == (2, 0, 6, None)
    assert ties.e_value == some.e_value
    assert ties.more > 2 * some.more


def test_levels_of_all_looks_add_up_to_the_share_of_alpha() -> None:
    policy = SettlingPolicy()
    levels = [policy.alpha_at(look, 0.05) for look in range(1, 20_000)]
    assert sum(levels) == pytest.approx(policy.share * 0.05, rel=1e-3)
    assert sum(levels) <= policy.share * 0.05
    assert levels == sorted(levels, reverse=True)
    kept = sum(Policy().alpha_at(look) for look in range(1, 20_000))
    assert sum(levels) + kept <= 0.05
    off = Policy(settling=SettlingPolicy(enabled=False))
    assert Policy().alpha_at(1) == pytest.approx((1 - policy.share) * off.alpha_at(1))


def test_the_reference_sets_e_value_has_mean_one_under_the_null() -> None:
    p = (np.arange(100_000) + 0.5) / 100_000
    assert 0.99 < np.mean([settling.e_value(one) for one in p.tolist()]) < 1
    assert settling.e_value(0.5) == pytest.approx(exp(-1.125))
    assert settling.e_value(0.0227501) == pytest.approx(exp(1.5 * 2 - 1.125), rel=1e-4)
    assert settling.e_value(0.95) == 0.0
    assert settling.level(0.5, 10.0) == settling.MOST_LEVEL


def decided(task: Task, champion: str, candidate: str, label: str) -> DecidedItem:
    return DecidedItem(
        item_id="i",
        kind="disagreement",
        round_id="r",
        task=task,
        key="k",
        text="t",
        metadata={},
        champion_answer=champion,
        candidate_answer=candidate,
        label=label,
        decided_at=utc_now(),
    )


@pytest.mark.parametrize(
    ("task", "champion", "candidate", "label", "expected"),
    [
        ("classification", "card", "loan", "loan", WIN),
        ("classification", "card", "loan", "card", LOSS),
        ("classification", "card", "loan", "rate", TIE),
        ("multilabel", '["a"]', '["a", "b"]', '["a", "b"]', WIN),
        ("multilabel", '["a"]', '["a", "b"]', '["b"]', TIE),
        ("regression", "1.0", "2.0", "1.6", WIN),
        ("regression", "1.0", "2.0", "1.4", LOSS),
        ("regression", "1.0", "2.0", "1.5", TIE),
        ("generation", "hello", "hi", "hi", WIN),
        ("generation", "hello", "hi", "tie", TIE),
    ],
)
def test_a_label_favours_one_model_or_neither(
    task: Task, champion: str, candidate: str, label: str, expected: Favours
) -> None:
    assert favours(decided(task, champion, candidate, label)) is expected


def report(*results: tuple[str, Verdict], reference_p: float | None = 0.1, bootstrap: bool = False) -> GateReport:
    made = [GateResult(gate=gate, verdict=verdict, sentence="", interval=(-0.1, 0.1)) for gate, verdict in results]
    return GateReport(
        verdict=Verdict.INSUFFICIENT,
        results=made,
        policy_sha256="0" * 64,
        look=1,
        reference_p=reference_p,
        bootstrap=bootstrap,
    )


def test_only_a_lack_of_evidence_settles() -> None:
    lacks, passes, fails = Verdict.INSUFFICIENT, Verdict.PASS, Verdict.FAIL
    assert may_settle(report(("superiority", lacks), ("non_inferiority", lacks), ("calibration", passes)))
    assert may_settle(report(("superiority", fails)))  # no gain was seen, and none is excluded
    assert not may_settle(report(("superiority", passes)))
    assert not may_settle(report(("superiority", lacks), ("calibration", fails)))
    assert not may_settle(report(("superiority", lacks), ("calibration", lacks)))
    assert may_settle(report(("data", lacks), ("superiority", lacks), ("calibration", lacks), reference_p=None))
    assert not may_settle(report(("superiority", lacks), ("serving", fails)))
    assert not may_settle(report(("data", fails), ("superiority", lacks)))  # trained on the reference, or an attack
    assert not may_settle(report(("superiority", lacks), reference_p=0.95))
    assert not may_settle(report(("superiority", lacks), bootstrap=True))
