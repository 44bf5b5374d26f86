"""Settling: do labels on disagreements show that the candidate is better, or worse, than the champion?

Turns wins and losses into a verdict. Only where two models disagree can their accuracy differ, so a label there is worth as many
ordinary rows as there are texts to one disagreement. services/rounds/settling.py calls `settle`. Pure functions.

H0: a text on which exactly one of the two is right favours the candidate with probability p <= 1/2. Under it the uniform mixture
over p in (1/2, 1] is a test supermartingale, which exceeds 1/level with probability `level` at most, whenever people stop
(Ville 1939; Robbins 1970; Waudby-Smith and Ramdas 2024). It stops early at EARLY * level; at `horizon` labels an exact binomial
bound, by recursion over all paths, spends what is left. The chance under p = 1/2 that a path still passes, over the level, is
then itself a test martingale, so the whole is valid at any stopping time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln, ndtri

from schemas.queue import DecidedItem
from schemas.reports import GateReport, GateResult, Verdict
from schemas.targets import Task

Floats = NDArray[np.float64]

EARLY = 0.8  # share of the level that the mixture may spend before the horizon
WORTHWHILE = 0.7  # win share of a candidate that is worth labels
HOPELESS = 0.05  # the round ends when a worthwhile candidate would pass with less than this probability
MOST_LEVEL = 0.5
SHIFT = 1.5  # of a good candidate's score on the reference set, in standard errors
AHEAD = 0.9  # p-value on the reference set above which a candidate is not worth labels
COMPARISONS = frozenset({"data", "superiority", "non_inferiority", "slices", "forgetting", "flips", "baseline"})


class Favours(StrEnum):
    """The model that a label favours."""

    CANDIDATE = "candidate"
    CHAMPION = "champion"
    NEITHER = "neither"


@dataclass(frozen=True)
class Standing:
    """Where the labels stand: `verdict` is None while more are needed.

    `more` is the median number of further labels until a worthwhile candidate is settled, ties included. `e_value` is that of
    the mixture against p <= 1/2.
    """

    verdict: Verdict | None
    wins: int
    losses: int
    ties: int
    more: int
    e_value: float
    sentence: str


def favours(item: DecidedItem) -> Favours:
    """Return which model a labelled disagreement favours.

    A label or set of labels favours the model that gave it, a number the model that is closer. For generated texts the label
    is the number of the better text, which items.py has replaced by that model's answer.
    """
    champion, candidate, label = item.champion_answer or "", item.candidate_answer or "", item.label
    if item.task == "regression":
        gap = abs(float(candidate) - float(label)) - abs(float(champion) - float(label))
        return Favours.CANDIDATE if gap < 0 else Favours.CHAMPION if gap > 0 else Favours.NEITHER
    if label == candidate:
        return Favours.CANDIDATE
    return Favours.CHAMPION if label == champion else Favours.NEITHER


def differ(task: Task, champion: str, candidate: str) -> bool:
    """Return whether a label could favour one of two answers."""
    return float(champion) != float(candidate) if task == "regression" else champion != candidate


def level(alpha: float, reference_e: float) -> float:
    """Return the level of the labels: the e-value of the reference set multiplies alpha, because evidence multiplies."""
    return min(MOST_LEVEL, alpha * reference_e)


def e_value(p: float) -> float:
    """Return the e-value of a p-value: the likelihood ratio of a normal score shifted by SHIFT, up to AHEAD, else 0.

    Its mean under the null is below 1, so it calibrates p-values (Vovk and Wang 2021).
    """
    score = float(ndtri(1 - max(p, 1e-12)))
    return math.exp(SHIFT * score - SHIFT**2 / 2) if p <= AHEAD else 0.0


def settle(outcomes: Sequence[Favours], at: float, horizon: int, harm_alpha: float) -> Standing:
    """Return where labels stand after these outcomes.

    Args:
        outcomes: in the order in which items were decided.
        at: level of the labels.
        horizon: number of wins and losses at which the round ends.
        harm_alpha: level at which losses show harm.

    """
    wins = losses = 0
    table = verdicts(at, horizon, harm_alpha)
    verdict: Verdict | None = None
    for one in outcomes:
        wins, losses = wins + (one is Favours.CANDIDATE), losses + (one is Favours.CHAMPION)
        verdict = table[wins + losses][wins]
        if verdict is not None:
            break
    ties = sum(one is Favours.NEITHER for one in outcomes)
    more = 0 if verdict else math.ceil(_median_more(wins, losses, at, horizon) * _per_decisive(wins + losses, ties))
    e = math.exp(min(700.0, float(_log_mixtures(horizon)[wins + losses][wins])))
    return Standing(verdict, wins, losses, ties, more, e, _sentence(verdict, wins, losses, ties, e, at))


@lru_cache(maxsize=4096)
def verdicts(at: float, horizon: int, harm_alpha: float) -> tuple[tuple[Verdict | None, ...], ...]:
    """Return for n from 0 to `horizon`, and every number of wins, the verdict if no earlier count gave one; None: go on."""
    needed, hope, harm = wins_needed(at, horizon), chances(at, horizon, WORTHWHILE), _log_mixtures(horizon)
    table = []
    for n in range(horizon + 1):
        harmed, hopeless = (harm[n][::-1] >= -math.log(harm_alpha)).tolist(), (hope[n] < HOPELESS).tolist()
        row = [
            Verdict.FAIL if worse else Verdict.INSUFFICIENT if ends else None
            for worse, ends in zip(harmed, hopeless, strict=True)
        ]
        table.append((*row[: needed[n]], *[Verdict.PASS] * (n + 1 - needed[n])))
    return tuple(table)


def may_settle(report: GateReport) -> bool:
    """Return whether a round with this report may wait for labels.

    What stopped it is a lack of evidence and nothing else, and the reference set does not speak against the candidate.
    """
    stopped = [result for result in report.results if result.blocking and result.verdict is not Verdict.PASS]
    few = any(result.gate == "data" and result.verdict is Verdict.INSUFFICIENT for result in stopped)
    behind = report.reference_p is not None and report.reference_p > AHEAD
    wanting = bool(stopped) and all(_lacks_evidence(result, few=few) for result in stopped)
    return wanting and not behind and not report.bootstrap


def _lacks_evidence(result: GateResult, *, few: bool) -> bool:
    """Return whether labels can stand in for what a gate lacks.

    Labels compare candidate and champion, so they stand in for comparisons. With `few` reference rows every insufficient gate
    lacks the same rows, and the champion was not judged by more of them.
    """
    if result.verdict is Verdict.INSUFFICIENT:
        return few or result.gate in COMPARISONS
    return result.gate == "superiority" and result.interval is not None and result.interval[1] > 0


@lru_cache(maxsize=256)
def wins_needed(at: float, horizon: int) -> tuple[int, ...]:
    """Return, for n wins and losses from 0 to `horizon`, the wins that pass: n + 1 where none does.

    The probability under p = 1/2 of ever having that many is at most `at`.
    """
    bound = -math.log(EARLY * at)
    enough = [np.flatnonzero(log_e >= bound) for log_e in _log_mixtures(horizon)]
    needed = [int(wins[0]) if len(wins) else n + 1 for n, wins in enumerate(enough)]
    paths = np.array([1.0])  # probability of each number of wins among paths that have not passed
    spent = 0.0
    for n in range(1, horizon + 1):
        paths = 0.5 * (np.append(paths, 0.0) + np.append(0.0, paths))
        if n < horizon:
            spent += float(paths[needed[n] :].sum())
            paths[needed[n] :] = 0.0
    tail = np.cumsum(paths[::-1])[::-1]  # probability of at least w wins at the horizon
    affordable = np.flatnonzero(spent + tail <= at)
    last = int(affordable[0]) if len(affordable) else horizon + 1
    return (*needed[:-1], min(needed[-1], last))


@lru_cache(maxsize=256)
def chances(at: float, horizon: int, p: float) -> tuple[Floats, ...]:
    """Return for n from 0 to `horizon`, and for every number of wins [n + 1], the probability of passing in the end under `p`."""
    needed = wins_needed(at, horizon)
    after = (np.arange(horizon + 1) >= needed[horizon]).astype(float)
    rows = [after]
    for n in range(horizon - 1, -1, -1):
        after = p * after[1:] + (1 - p) * after[:-1]
        after[needed[n] :] = 1.0
        rows.append(after)
    return tuple(reversed(rows))


@lru_cache(maxsize=8)
def _log_mixtures(horizon: int) -> tuple[Floats, ...]:
    """Return for n from 0 to `horizon`, and for every number of wins [n + 1], the log of the mixture's e-value.

    It is 2 * 2^n * integral of q^wins (1 - q)^losses over q in (1/2, 1].
    """
    rows = []
    for n in range(horizon + 1):
        wins = np.arange(n + 1)
        upper = np.maximum(betainc(n - wins + 1, wins + 1, 0.5), 1e-300)
        rows.append((n + 1) * math.log(2) + betaln(wins + 1, n - wins + 1) + np.log(upper))
    return tuple(rows)


def _median_more(wins: int, losses: int, at: float, horizon: int) -> int:
    """Return the median further wins and losses until a worthwhile candidate passes, among those that pass."""
    needed, n = wins_needed(at, horizon), wins + losses
    wanted = 0.5 * float(chances(at, horizon, WORTHWHILE)[n][wins])
    paths, passed = np.array([1.0]), 0.0
    for more in range(1, horizon - n + 1):
        paths = WORTHWHILE * np.append(0.0, paths) + (1 - WORTHWHILE) * np.append(paths, 0.0)
        first = max(0, needed[n + more] - wins)
        passed += float(paths[first:].sum())
        paths[first:] = 0.0
        if passed >= wanted:
            return more
    return max(0, horizon - n)


def _per_decisive(decisive: int, ties: int) -> float:
    """Return the labels that one win or loss takes, from those so far and two prior ones."""
    return (decisive + ties + 2) / (decisive + 2)


def _sentence(verdict: Verdict | None, wins: int, losses: int, ties: int, e: float, at: float) -> str:
    numbers = f"{wins} wins, {losses} losses, {ties} ties on disagreements (e-value {e:.3g}, level {at:.2g})"
    match verdict:
        case Verdict.PASS:
            return f"better than the champion: {numbers}"
        case Verdict.FAIL:
            return f"worse than the champion: {numbers}"
        case Verdict.INSUFFICIENT:
            return f"not shown to be better, and more labels would hardly show it: {numbers}"
    return f"not settled yet: {numbers}"
