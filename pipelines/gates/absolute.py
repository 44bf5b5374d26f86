"""Absolute gates: is the candidate good enough by itself, with or without a champion?

Turns the candidate's evidence, and facts about its data and its artefact, into gate results, one function a gate. verdict.py
calls them. Pure functions.
"""

from collections.abc import Mapping

from pipelines.calibration import conformal
from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.gates.alpha_spending import ONE_LOOK
from pipelines.gates.policy import (
    BootstrapPolicy,
    CalibrationPolicy,
    DataPolicy,
    FlipsPolicy,
    MarginPolicy,
    RobustnessPolicy,
    ServingPolicy,
)
from pipelines.gates.result import gate_result
from pipelines.metrics import paired_tests
from schemas.reports import GateResult, Robustness, Verdict

RIVALS = {
    "tfidf": "TF-IDF with a linear model on the same training rows",
    "untrained": "the base model without training",
}
LOSSES = {"nll": "NLL", "brier": "Brier"}
# The null's percentile comes from 1,000 draws and refits the map to first order. Just above it, one of a hundred good candidates
# would be stopped for that alone.
ECE_SLACK = 1.1
TELLS_NOTHING = 10  # rows that say nothing about a first model, whatever their interval


def data(n: int, people: int, quarantined: int, leaked: int, policy: DataPolicy, *, bootstrap: bool) -> GateResult:
    """Pass if the reference set is large enough and not trained on, and most people's feedback is accepted."""
    share = quarantined / max(1, people)
    verdict, needed = Verdict.FAIL, None
    if leaked > policy.max_leaked_rows:
        sentence = f"{leaked} rows of the reference set are also training rows, at most {policy.max_leaked_rows} may be"
    elif share > policy.max_quarantined_people_share:
        sentence = f"{quarantined} of {people} people are quarantined: check the feedback for an attack or a bug"
    elif n < policy.min_judge_rows:
        verdict, needed = Verdict.INSUFFICIENT, policy.min_judge_rows
        sentence = f"the reference set has {n} rows; at least {policy.min_judge_rows} are required: add rows to it"
    else:
        verdict = Verdict.PASS
        sentence = (
            f"the reference set has {n} rows, none of them trained on; {quarantined} of {people} people quarantined"
        )
    # A first champion has no comparison to win, so a small reference set only advises.
    blocking = policy.blocking and not (bootstrap and verdict is Verdict.INSUFFICIENT)
    return gate_result(
        "data", verdict, sentence, blocking=blocking, observed=n, threshold=policy.min_judge_rows, n=n, needed=needed
    )


def drift(psi: float, policy: DataPolicy) -> GateResult:
    """Advise if the mix of labels moved; never blocks."""
    sentence = f"population stability index of labels {psi:.3f}, a major shift begins at {policy.max_drift:.2f}"
    return gate_result(
        "drift", psi <= policy.max_drift, sentence, blocking=False, observed=psi, threshold=policy.max_drift
    )


def bootstrap(candidate: Evidence, policy: BootstrapPolicy, least_rows: int) -> GateResult:
    """Pass if the first model beats a constant prediction.

    Fewer rows than `least_rows` that leave it open only advise: without a first model there is no traffic to label, and its
    successors are settled by labels.
    """
    score, n = candidate.score, candidate.report.n
    floor = score.constant_baseline + policy.min_gain_over_majority
    possible = n < TELLS_NOTHING or min(floor, 1.0) <= score.interval[1]
    is_open = n < least_rows and score.value < floor and possible
    name = score.name or candidate.measure
    numbers = f"{name} {score.value:.3f}, {candidate.constant_baseline} {score.constant_baseline:.3f}"
    return gate_result(
        "bootstrap",
        Verdict.INSUFFICIENT if is_open else score.value >= floor,
        f"{numbers}; {n} rows cannot tell which is better" if is_open else numbers,
        blocking=policy.blocking and not is_open,
        observed=score.value,
        threshold=floor,
        n=n,
        interval=score.interval,
    )


def must_pass(wrong: list[str], n: int, policy: FlipsPolicy) -> GateResult:
    """Pass if every must-pass example is right."""
    shown = "; ".join(repr(text[:60]) for text in wrong[:3])
    sentence = f"{len(wrong)} of {n} must-pass examples are wrong: {shown}" if wrong else f"all {n} are right"
    return gate_result(
        "must_pass", not wrong, sentence, blocking=policy.blocking, observed=len(wrong), threshold=0, n=n
    )


def calibration(
    champion: Evidence | None, candidate: Evidence, policy: CalibrationPolicy, *, bootstrap: bool = False
) -> GateResult:
    """Pass if the candidate is calibrated: ECE within its null, no mean bias, losses not worse, coverage as promised."""
    report, level = candidate.report, policy.alpha / 4
    wrong, measured = [], []
    observed, limit, interval = None, None, None
    if report.ece is not None:
        observed, limit = report.ece, max(ECE_SLACK * (report.ece_null_99 or 0.0), policy.ece_floor)
        measured.append(f"ECE {observed:.3f} (a calibrated model stays below {limit:.3f})")
        wrong += [f"ECE is above {limit:.3f}"] if observed > limit else []
        if ece := report.measures.get("ece"):
            interval = (ece.low, ece.high)
    bias = candidate.bias
    if bias is not None and bias.p <= level and abs(bias.gap) > policy.ece_floor:
        wrong.append(f"the model is {bias.direction} on average")
    if champion is not None:
        worse = [LOSSES[name] for name in candidate.losses if candidate.compared_with(champion, name).p_worse <= level]
        wrong += [f"{' and '.join(worse)} worse than the champion's"] if worse else []
    measured += [f"{LOSSES[name]} {loss.mean():.3f}" for name, loss in candidate.losses.items()]
    if candidate.scores:
        hits, promised = int(candidate.covered(policy.coverage).sum()), f"{policy.coverage:.0%}"
        measured.append(f"{candidate.region} at {promised} contain {hits / report.n:.1%}")
        if conformal.p_covered(candidate.scores, hits, report.n, policy.coverage) <= level:
            wrong.append(f"{candidate.region} contain the truth less often than promised")
        if observed is None:
            observed, limit, interval = hits / report.n, policy.coverage, paired_tests.share_interval(hits, report.n)
    sentence = ", ".join(measured)
    return gate_result(
        "calibration",
        not wrong,
        f"{' and '.join(wrong)}: {sentence}" if wrong else sentence,
        # An over-confident first champion is still the only model there is; a person sees the warning.
        blocking=policy.blocking and not bootstrap,
        observed=observed,
        threshold=limit,
        n=report.n,
        interval=interval,
    )


def robustness(
    champion: Mapping[str, Robustness] | None,
    candidate: Mapping[str, Robustness],
    policy: RobustnessPolicy,
    *,
    bootstrap: bool = False,
) -> GateResult:
    """Pass if harmless edits change at most the allowed share of predictions, or at most the champion's share."""
    edited, flipped = (sum(getattr(one, what) for one in candidate.values()) for what in ("edited", "flipped"))
    if not edited:
        return gate_result("robustness", True, "nothing was edited", blocking=policy.blocking)
    worst = max(candidate, key=lambda kind: candidate[kind].flipped / max(1, candidate[kind].edited))
    share, limit = flipped / edited, policy.max_flips
    low, high = paired_tests.share_interval(flipped, edited)
    before = ""
    if champion is not None:
        theirs = sum(one.flipped for one in champion.values()) / max(1, sum(one.edited for one in champion.values()))
        limit, before = max(limit, theirs), f", the champion's {theirs:.1%}"
    kind = candidate[worst]
    return gate_result(
        "robustness",
        low <= limit,
        f"harmless edits change {share:.1%} of {edited} predictions{before}; most by {worst}, {kind.flipped} of {kind.edited}",
        # Without a champion there is no better model to serve, so brittleness only advises.
        blocking=policy.blocking and not bootstrap,
        observed=share,
        threshold=limit,
        n=edited,
        interval=(low, high),
    )


def baseline(probe: Evidence, candidate: Evidence, policy: MarginPolicy, *, bootstrap: bool = False) -> GateResult:
    """Pass if the candidate is not worse than the best cheap baseline.

    It only advises on a first model: without one nothing would serve. But one that does worse than a baseline which needs no
    training (copying, in generation) waits for a person.
    """
    comparison = candidate.compared_with(probe)
    rival = RIVALS.get(probe.report.model_version, candidate.baseline)
    numbers = f"{candidate.measure} {comparison.observed:+.3f} against {rival}"
    verdict = Verdict.PASS
    if comparison.observed < -policy.margin and comparison.p_worse <= ONE_LOOK:
        verdict = Verdict.FAIL
    elif bootstrap and candidate.copying_competes and comparison.observed < 0:
        verdict = Verdict.INSUFFICIENT
        numbers += (
            ": this baseline needs no training and does better here. Approve the round if the model should serve anyway"
        )
    return gate_result(
        "baseline",
        verdict,
        numbers,
        # Without a champion there is no better model to serve; a few rows cannot tell which baseline will be the better one.
        blocking=policy.blocking and (not bootstrap or candidate.copying_competes),
        comparison=comparison,
        threshold=-policy.margin,
    )


def serving(
    latency_ms: float | None, memory_mb: float | None, size_mb: float, error: str | None, policy: ServingPolicy
) -> GateResult:
    """Pass if the artefact loads and predicts in a fresh process, within the bounds on latency, memory and size."""
    bounds = (
        ("answers in", latency_ms, policy.max_latency_ms, "ms"),
        ("takes", memory_mb, policy.max_memory_mb, "MB of memory"),
        ("takes", size_mb, policy.max_size_mb, "MB of disk"),
    )
    over = [
        f"{what} {value:.0f} {unit}, at most {most:.0f}" for what, value, most, unit in bounds if (value or 0) > most
    ]
    sentence = error or "; ".join(over)
    if not sentence:
        sentence = (
            f"loaded in a fresh process, golden outputs right, {latency_ms or 0:.1f} ms a text, {memory_mb or 0:.0f} MB of"
            f" memory, {size_mb:.0f} MB on disk"
        )
    return gate_result(
        "serving",
        not (error or over),
        sentence,
        blocking=policy.blocking,
        observed=latency_ms,
        threshold=policy.max_latency_ms,
        n=1,
    )
