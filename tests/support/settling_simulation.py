"""Rounds whose truth is known, judged by the real comparison gates and settled by the real test on labels.

test_evidence_settling.py and bench/evidence_settling.py share them. A candidate differs from its champion on CHURN of the texts,
and on each of these exactly one of the two is right. What is drawn: how many reference rows it gains and loses, and the labels.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.classification import LabelEvidence
from pipelines.gates import against_champion, settling
from pipelines.gates.policy import Policy
from pipelines.gates.settling_policy import SettlingPolicy
from pipelines.gates.verdict import gate_report
from schemas.manifests import Calibration
from schemas.reports import EvaluationReport, GateResult, Verdict

CHURN = 0.07
POLICY = Policy()
WITHOUT_LABELS = Policy(settling=SettlingPolicy(enabled=False))
HORIZON = POLICY.settling.max_labels
ACCURACY = 0.85
ENDINGS: dict[Verdict | None, int] = {Verdict.PASS: 1, Verdict.FAIL: 2, Verdict.INSUFFICIENT: 3}


@dataclass(frozen=True)
class Judged:
    """What the gates make of a reference set: promoted at once, or the level at which labels settle it, or neither."""

    promoted: bool
    level: float | None


@dataclass(frozen=True)
class Outcomes:
    """Of each simulated round: whether its candidate was promoted, and with how many labels."""

    promoted: NDArray[np.bool_]
    labels: NDArray[np.int64]
    settled: NDArray[np.bool_]  # it waited for labels


def evidence(right: NDArray[np.bool_]) -> LabelEvidence:
    """Answers of a model with two labels that is right on these rows."""
    truth = np.zeros(len(right), dtype=np.int64)
    probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    report = EvaluationReport(model_version="v", split="reference", n=len(right), accuracy=float(right.mean()), nll=0.0)
    rows = [FileRow("", "a")] * len(right)
    return LabelEvidence(report, rows, ["a", "b"], 2, probabilities, truth, Calibration())


@lru_cache(maxsize=10_000)
def compared(gained: int, lost: int, n: int) -> tuple[LabelEvidence, LabelEvidence, list[GateResult], float]:
    """Champion and candidate that differ by these reference rows, what does not depend on the look, and the p-value."""
    right = np.zeros(n, dtype=bool)
    right[: round(ACCURACY * n)] = True
    after = right.copy()
    after[:lost], after[n - gained :] = False, True
    champion, candidate = evidence(right), evidence(after)
    results = [
        against_champion.non_inferiority(champion, candidate, POLICY.non_inferiority),
        against_champion.flips(champion, candidate, POLICY.flips),
    ]
    return champion, candidate, results, candidate.compared_with(champion, "accuracy").p_better


@lru_cache(maxsize=100_000)
def judged(gained: int, lost: int, n: int, look: int, *, labels: bool = True) -> Judged:
    """Judge a candidate that gains and loses these reference rows, at this look; without `labels` nothing settles."""
    policy = POLICY if labels else WITHOUT_LABELS
    champion, candidate, others, p = compared(gained, lost, n)
    first = against_champion.superiority(champion, candidate, look, policy.alpha_at(look), policy.superiority)
    report = gate_report([first, *others], policy, look=look).model_copy(update={"reference_p": p})
    if report.verdict is Verdict.PASS or not labels or not settling.may_settle(report):
        return Judged(report.verdict is Verdict.PASS, None)
    return Judged(False, settling.level(policy.settling_alpha_at(look), settling.e_value(p)))


@lru_cache(maxsize=2000)
def endings(level: float, horizon: int = HORIZON) -> NDArray[np.int8]:
    """The verdict by wins and losses [horizon + 1, horizon + 1], as `settle` gives it: 0 while more labels are needed."""
    table = np.zeros((horizon + 1, horizon + 1), dtype=np.int8)
    for n, row in enumerate(settling.verdicts(level, horizon, POLICY.settling.harm_alpha)):
        for wins, verdict in enumerate(row):
            table[wins, n - wins] = ENDINGS.get(verdict, 0)
    return table


def settle_labelled(level: float, won: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Settle rounds by their labels [n, HORIZON], which favour the candidate or not; return who passed."""
    return _settled(level, won)[0]


def settle_many(
    level: float, p: float, n: int, draw: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Settle n rounds by labels that favour the candidate with probability p; return who passed, and labels given."""
    return _settled(level, draw.random((n, HORIZON)) < p)


def _settled(level: float, outcomes: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    table, won = endings(level), np.cumsum(outcomes, axis=1)
    ended = table[won, np.arange(1, HORIZON + 1) - won]
    first = (ended != 0).argmax(axis=1)
    passed: NDArray[np.bool_] = ended[np.arange(len(ended)), first] == ENDINGS[Verdict.PASS]
    return passed, first + 1


def simulate(
    rounds: int, rows: int, look: int, gain: float, draw: np.random.Generator, *, labels: bool = True
) -> Outcomes:
    """Judge and settle rounds whose candidate's accuracy differs by `gain` in truth."""
    shares = [(CHURN + gain) / 2, (CHURN - gain) / 2, 1 - CHURN]
    drawn = draw.multinomial(rows, shares, size=rounds)[:, :2]
    promoted, given = np.zeros(rounds, dtype=bool), np.zeros(rounds, dtype=np.int64)
    settled = np.zeros(rounds, dtype=bool)
    pairs, which = np.unique(drawn, axis=0, return_inverse=True)
    levels: dict[float, list[int]] = {}
    for number, (gained, lost) in enumerate(pairs.tolist()):
        verdict = judged(gained, lost, rows, look, labels=labels)
        members = np.flatnonzero(which.ravel() == number).tolist()
        promoted[members] = verdict.promoted
        if verdict.level is not None:
            levels.setdefault(verdict.level, []).extend(members)
    for level, members in levels.items():
        passed, taken = settle_many(level, (CHURN + gain) / 2 / CHURN, len(members), draw)
        promoted[members], given[members], settled[members] = passed, taken, True
    return Outcomes(promoted, given, settled)


def by_then(outcomes: Outcomes, labels: int) -> NDArray[np.bool_]:
    """Return which rounds were promoted within a number of labels."""
    within: NDArray[np.bool_] = outcomes.promoted & (outcomes.labels <= labels)
    return within


def ever_promoted(
    projects: int, rounds: int, rows: int, gain: float, draw: np.random.Generator, *, labels: bool = True
) -> NDArray[np.bool_]:
    """Return in which projects some round of many against one champion was promoted.

    Each round's candidate is drawn anew, so reference rows used again are as good as fresh ones: the gates look at changes only.
    """
    ever = np.zeros(projects, dtype=bool)
    for look in range(1, rounds + 1):
        left = np.flatnonzero(~ever)
        ever[left] = simulate(len(left), rows, look, gain, draw, labels=labels).promoted
    return ever
