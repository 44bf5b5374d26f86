"""The gates: may this candidate serve?

Turns the evidence on champion, candidate and probe, under a policy, into a `GateReport`. Pure functions; training_round.py
calls `judge` and acts on the verdict. They deliberately read no feedback: only fair evidence judges (the reference set).
"""

import hashlib
import tomllib
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import binom, binomtest, norm

from pipelines.evaluation import Evidence
from schemas.artifacts import GateReport, GateResult, Verdict

DEFAULT_POLICY = """# The gates: thresholds, and why. A gate with blocking = false only advises.

[data]
blocking = true
# Fewer rows than this on the judging side of the reference cannot tell a better model from luck.
min_judge_rows = 100
# A round whose feedback is mostly quarantined is an attack or a bug, and somebody should look.
max_quarantined_people_share = 0.5

[superiority]
blocking = true
# One-sided exact McNemar on the reference. The k-th look since the last promotion gets alpha / (k (k + 1)), so that all looks
# together stay below alpha.
alpha = 0.05

[calibration]
blocking = true
# NLL and Brier score may not be worse than the champion's by a paired test at this level.
alpha = 0.05
# ECE may not pass the 99th percentile of what a perfectly calibrated model shows at this n, unless it is below this anyway.
ece_floor = 0.02

[baseline]
blocking = true
# A round that loses to a logistic probe on frozen embeddings by more than this share of rows has no reason to exist.
margin = 0.01

[serving]
blocking = true
# The artefact, loaded in a fresh process, has to answer one text within this time (milliseconds, median).
max_latency_ms = 500

[bootstrap]
blocking = true
# Without a champion there is nothing to compare with: the first one has to beat always guessing the commonest label.
min_gain_over_majority = 0.02
"""


class BadPolicy(ValueError):
    """policy.toml has an unknown key or a bad value."""


class _Gate(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    blocking: bool = True


class DataPolicy(_Gate):
    """Enough fair evidence, and feedback that is not mostly quarantined."""

    min_judge_rows: int = Field(100, ge=0)
    max_quarantined_people_share: float = Field(0.5, ge=0, le=1)


class AlphaPolicy(_Gate):
    """A test at a level."""

    alpha: float = Field(0.05, gt=0, lt=1)


class CalibrationPolicy(AlphaPolicy):
    """A test at a level, and a floor under ECE."""

    ece_floor: float = Field(0.02, ge=0, le=1)


class BaselinePolicy(_Gate):
    """A margin in accuracy."""

    margin: float = Field(0.01, ge=0, le=1)


class ServingPolicy(_Gate):
    """A bound on latency."""

    max_latency_ms: float = Field(500, gt=0)


class BootstrapPolicy(_Gate):
    """A floor for the first champion."""

    min_gain_over_majority: float = Field(0.02, ge=0, le=1)


class Policy(BaseModel):
    """policy.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: DataPolicy = DataPolicy()
    superiority: AlphaPolicy = AlphaPolicy()
    calibration: CalibrationPolicy = CalibrationPolicy()
    baseline: BaselinePolicy = BaselinePolicy()
    serving: ServingPolicy = ServingPolicy()
    bootstrap: BootstrapPolicy = BootstrapPolicy()


def load_policy(text: str) -> tuple[Policy, str]:
    """The policy and the SHA-256 of its text. Raises BadPolicy."""
    try:
        return Policy.model_validate(tomllib.loads(text)), hashlib.sha256(text.encode()).hexdigest()
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BadPolicy(f"policy.toml: {error}") from error


class Candidate(BaseModel):
    """What the gates look at beside the evidence."""

    model_config = ConfigDict(frozen=True)
    look: int
    people: int
    quarantined: int
    majority_share: float
    latency_ms: float | None
    load_error: str | None


def judge(
    champion: Evidence | None,
    candidate: Evidence,
    probe: Evidence,
    facts: Candidate,
    policy: Policy,
    policy_sha256: str,
) -> GateReport:
    """Run every gate. All evidence is on the same rows in the same order; without a champion, the bootstrap path."""
    results = [_data(candidate, facts, policy.data, bootstrap=champion is None)]
    if champion is None:
        results.append(_bootstrap(candidate, facts, policy.bootstrap))
    else:
        results.append(_superiority(champion, candidate, facts.look, policy.superiority))
    results.append(_calibration(champion, candidate, policy.calibration))
    results.append(_baseline(probe, candidate, policy.baseline))
    results.append(_serving(facts, policy.serving))
    blocking = [result.verdict for result in results if result.blocking]
    verdict = next((v for v in (Verdict.FAIL, Verdict.INSUFFICIENT) if v in blocking), Verdict.PASS)
    return GateReport(
        verdict=verdict, results=results, policy_sha256=policy_sha256, look=facts.look, bootstrap=champion is None
    )


def _data(candidate: Evidence, facts: Candidate, policy: DataPolicy, *, bootstrap: bool) -> GateResult:
    n, share = candidate.report.n, facts.quarantined / max(1, facts.people)
    if share > policy.max_quarantined_people_share:
        verdict, sentence = (
            Verdict.FAIL,
            f"{facts.quarantined} of {facts.people} people are quarantined: somebody should look",
        )
    elif n < policy.min_judge_rows:
        verdict = Verdict.INSUFFICIENT
        sentence = f"{n} rows judge, {policy.min_judge_rows} are wanted: add rows to the reference"
    else:
        verdict, sentence = (
            Verdict.PASS,
            f"{n} reference rows judge; {facts.quarantined} of {facts.people} people quarantined",
        )
    # The first champion needs no proof against another: few rows are then worth a word, not a veto.
    blocking = policy.blocking and not (bootstrap and verdict is Verdict.INSUFFICIENT)
    return GateResult(
        gate="data",
        verdict=verdict,
        blocking=blocking,
        observed=n,
        threshold=policy.min_judge_rows,
        n=n,
        sentence=sentence,
    )


def _bootstrap(candidate: Evidence, facts: Candidate, policy: BootstrapPolicy) -> GateResult:
    observed, floor = candidate.report.accuracy, facts.majority_share + policy.min_gain_over_majority
    passed = observed >= floor
    return GateResult(
        gate="bootstrap",
        verdict=Verdict.PASS if passed else Verdict.FAIL,
        blocking=policy.blocking,
        observed=observed,
        threshold=floor,
        n=candidate.report.n,
        sentence=f"accuracy {observed:.3f}, always guessing the commonest label {facts.majority_share:.3f}",
    )


def mcnemar(champion: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Rows that only the candidate has right, only the champion, and the exact one-sided p (McNemar 1947)."""
    gained, lost = int((candidate & ~champion).sum()), int((champion & ~candidate).sum())
    return gained, lost, float(binom.sf(gained - 1, gained + lost, 0.5)) if gained + lost else 1.0


def _superiority(champion: Evidence, candidate: Evidence, look: int, policy: AlphaPolicy) -> GateResult:
    gained, lost, p = mcnemar(champion.right, candidate.right)
    n, alpha = candidate.report.n, policy.alpha / (look * (look + 1))
    change = (gained - lost) / n
    moved = f"{gained} rows gained, {lost} lost of {n} ({change:+.3f}); p = {p:.2g}, alpha at look {look} = {alpha:.2g}"
    if p <= alpha:
        verdict, sentence = Verdict.PASS, f"better than the champion: {moved}"
    elif gained > lost:
        wanted = ceil(n * norm.isf(alpha) ** 2 / ((gained - lost) ** 2 / (gained + lost)))
        verdict, sentence = (
            Verdict.INSUFFICIENT,
            f"not shown to be better: {moved}; about {wanted} rows would settle it",
        )
    else:
        verdict, sentence = Verdict.FAIL, f"not better than the champion: {moved}"
    interval = binomtest(gained, max(1, gained + lost)).proportion_ci() if gained + lost else None
    scale = (gained + lost) / n
    return GateResult(
        gate="superiority",
        verdict=verdict,
        blocking=policy.blocking,
        observed=change,
        threshold=alpha,
        n=n,
        interval=((2 * interval.low - 1) * scale, (2 * interval.high - 1) * scale) if interval else None,
        sentence=sentence,
    )


def _worse(champion: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """One-sided p of the paired difference: small when the candidate's losses are larger."""
    difference = candidate - champion
    spread = float(difference.std(ddof=1)) / sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(norm.sf(difference.mean() / spread)) if spread else 1.0


def _calibration(champion: Evidence | None, candidate: Evidence, policy: CalibrationPolicy) -> GateResult:
    report = candidate.report
    limit = max(report.ece_null_99, policy.ece_floor)
    sentence = f"ECE {report.ece:.3f}, a calibrated model stays below {limit:.3f}; NLL {report.nll:.3f}, Brier {report.brier:.3f}"
    verdict = Verdict.PASS if report.ece <= limit else Verdict.FAIL
    if champion is not None:
        worse = {"NLL": _worse(champion.nll, candidate.nll), "Brier": _worse(champion.brier, candidate.brier)}
        shown = [name for name, p in worse.items() if p <= policy.alpha]
        if shown:
            verdict, sentence = Verdict.FAIL, f"{' and '.join(shown)} worse than the champion's; {sentence}"
    return GateResult(
        gate="calibration",
        verdict=verdict,
        # A first champion that is over-confident is still the only one there can be; a person sees the warning.
        blocking=policy.blocking and champion is not None,
        observed=report.ece,
        threshold=limit,
        n=report.n,
        sentence=sentence,
    )


def _baseline(probe: Evidence, candidate: Evidence, policy: BaselinePolicy) -> GateResult:
    gained, lost, _ = mcnemar(probe.right, candidate.right)
    _, _, p_worse = mcnemar(candidate.right, probe.right)
    change = (gained - lost) / candidate.report.n
    failed = change < -policy.margin and p_worse <= 0.05
    return GateResult(
        gate="baseline",
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        blocking=policy.blocking,
        observed=change,
        threshold=-policy.margin,
        n=candidate.report.n,
        sentence=f"{change:+.3f} accuracy against a logistic probe on the same training rows",
    )


def _serving(facts: Candidate, policy: ServingPolicy) -> GateResult:
    slow = facts.latency_ms is None or facts.latency_ms > policy.max_latency_ms
    sentence = facts.load_error or f"loaded in a fresh process, golden outputs right, {facts.latency_ms:.1f} ms a text"
    return GateResult(
        gate="serving",
        verdict=Verdict.FAIL if facts.load_error or slow else Verdict.PASS,
        blocking=policy.blocking,
        observed=facts.latency_ms,
        threshold=policy.max_latency_ms,
        n=1,
        sentence=sentence,
    )
