"""Gates with floors: does the candidate hold up by itself, champion or none?

Turns the candidate's evidence, and what was found out about its data and its artefact, into gate results. gates.py calls
them, one function a gate. Pure functions; they deliberately know neither the order nor the sum of the gates.
"""

from collections.abc import Mapping

from pipelines.calibration import conformal
from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.gates.policy import (
    BootstrapPolicy,
    CalibrationPolicy,
    DataPolicy,
    FlipsPolicy,
    MarginPolicy,
    RobustnessPolicy,
    ServingPolicy,
)
from pipelines.metrics import paired_tests
from schemas.reports import GateResult, Robustness, Verdict

LOSSES = {"nll": "NLL", "brier": "Brier"}


def data(n: int, people: int, quarantined: int, leaked: int, policy: DataPolicy, *, bootstrap: bool) -> GateResult:
    """Is there enough fair evidence, none of it trained on, and is the feedback to be trusted?"""
    share = quarantined / max(1, people)
    needed = None
    if leaked > policy.max_leaked_rows:
        verdict, sentence = Verdict.FAIL, f"{leaked} judging rows are among the training rows: they are no evidence"
    elif share > policy.max_quarantined_people_share:
        verdict, sentence = Verdict.FAIL, f"{quarantined} of {people} people are quarantined: somebody should look"
    elif n < policy.min_judge_rows:
        verdict, needed = Verdict.INSUFFICIENT, policy.min_judge_rows
        sentence = f"{n} rows judge, {policy.min_judge_rows} are wanted: add rows to the reference"
    else:
        verdict = Verdict.PASS
        sentence = f"{n} reference rows judge, none of them trained; {quarantined} of {people} people quarantined"
    # The first champion needs no proof against another: few rows are then worth a word, not a veto.
    blocking = policy.blocking and not (bootstrap and verdict is Verdict.INSUFFICIENT)
    return GateResult(
        gate="data",
        verdict=verdict,
        blocking=blocking,
        observed=n,
        threshold=policy.min_judge_rows,
        n=n,
        needed=needed,
        sentence=sentence,
    )


def drift(psi: float, policy: DataPolicy) -> GateResult:
    """Has the mix of labels moved? Advice alone."""
    return GateResult(
        gate="drift",
        verdict=Verdict.PASS if psi <= policy.max_drift else Verdict.FAIL,
        blocking=False,
        observed=psi,
        threshold=policy.max_drift,
        sentence=f"population stability index of labels {psi:.3f}, a major shift begins at {policy.max_drift:.2f}",
    )


def bootstrap(candidate: Evidence, policy: BootstrapPolicy) -> GateResult:
    """Does the first model beat always guessing the same?"""
    score = candidate.score
    floor = score.guessing + policy.min_gain_over_majority
    return GateResult(
        gate="bootstrap",
        verdict=Verdict.PASS if score.value >= floor else Verdict.FAIL,
        blocking=policy.blocking,
        observed=score.value,
        threshold=floor,
        n=candidate.report.n,
        interval=score.interval,
        sentence=f"{score.name or candidate.measure} {score.value:.3f}, {candidate.guess} {score.guessing:.3f}",
    )


def must_pass(wrong: list[str], n: int, policy: FlipsPolicy) -> GateResult:
    """Are the examples that have to be right all right?"""
    shown = "; ".join(repr(text[:60]) for text in wrong[:3])
    return GateResult(
        gate="must_pass",
        verdict=Verdict.FAIL if wrong else Verdict.PASS,
        blocking=policy.blocking,
        observed=len(wrong),
        threshold=0,
        n=n,
        sentence=f"{len(wrong)} of {n} examples that have to be right are wrong: {shown}"
        if wrong
        else f"all {n} are right",
    )


def calibration(champion: Evidence | None, candidate: Evidence, policy: CalibrationPolicy) -> GateResult:
    """Are its claims honest: ECE within its null, right on average, NLL and Brier score not worse, sets or intervals as wide as
    they have to be?
    """
    report, level = candidate.report, policy.alpha / 4
    wrong, told = [], []
    observed, limit, interval = None, None, None
    if report.ece is not None:
        observed, limit = report.ece, max(report.ece_null_99 or 0.0, policy.ece_floor)
        told.append(f"ECE {observed:.3f} (a calibrated model stays below {limit:.3f})")
        wrong += [f"ECE is above {limit:.3f}"] if observed > limit else []
        if ece := report.measures.get("ece"):
            interval = (ece.low, ece.high)
    bias = candidate.bias
    if bias is not None and bias.p <= level and abs(bias.gap) > policy.ece_floor:
        wrong.append(f"it is {bias.said} as a whole")
    if champion is not None:
        worse = [LOSSES[name] for name in candidate.losses if candidate.moved(champion, name).p_worse <= level]
        wrong += [f"{' and '.join(worse)} worse than the champion's"] if worse else []
    told += [f"{LOSSES[name]} {loss.mean():.3f}" for name, loss in candidate.losses.items()]
    if candidate.scores:
        hits, promised = int(candidate.held(policy.coverage).sum()), f"{policy.coverage:.0%}"
        told.append(f"{candidate.bounds} at {promised} hold {hits / report.n:.1%}")
        if conformal.p_covered(candidate.scores, hits, report.n, policy.coverage) <= level:
            wrong.append(f"{candidate.bounds} hold less than they promise")
        if observed is None:
            observed, limit, interval = hits / report.n, policy.coverage, paired_tests.share_interval(hits, report.n)
    measured = ", ".join(told)
    return GateResult(
        gate="calibration",
        verdict=Verdict.FAIL if wrong else Verdict.PASS,
        # A first champion that is over-confident is still the only one there can be; a person sees the warning.
        blocking=policy.blocking and champion is not None,
        observed=observed,
        threshold=limit,
        n=report.n,
        interval=interval,
        sentence=f"{' and '.join(wrong)}: {measured}" if wrong else measured,
    )


def robustness(
    champion: Mapping[str, Robustness] | None, candidate: Mapping[str, Robustness], policy: RobustnessPolicy
) -> GateResult:
    """Do harmless edits change too many answers, and more of them than they change of the champion's?"""
    edited, flipped = (sum(getattr(one, what) for one in candidate.values()) for what in ("edited", "flipped"))
    if not edited:
        return GateResult(
            gate="robustness", verdict=Verdict.PASS, blocking=policy.blocking, sentence="nothing was edited"
        )
    share, limit = flipped / edited, policy.max_flips
    low, high = paired_tests.share_interval(flipped, edited)
    before = ""
    if champion is not None:
        theirs = sum(one.flipped for one in champion.values()) / max(1, sum(one.edited for one in champion.values()))
        limit, before = max(limit, theirs), f", the champion's {theirs:.1%}"
    worst = max(candidate, key=lambda kind: candidate[kind].flipped / max(1, candidate[kind].edited))
    kind = candidate[worst]
    return GateResult(
        gate="robustness",
        verdict=Verdict.FAIL if low > limit else Verdict.PASS,
        # Without a champion there is nothing else to serve, brittle or not.
        blocking=policy.blocking and champion is not None,
        observed=share,
        threshold=limit,
        n=edited,
        interval=(low, high),
        sentence=(
            f"harmless edits change {share:.1%} of {edited} answers{before}; most by {worst}, {kind.flipped} of {kind.edited}"
        ),
    )


def baseline(probe: Evidence, candidate: Evidence, policy: MarginPolicy) -> GateResult:
    """Is it worth its training: not worse than the cheapest method that learns from the same rows?"""
    moved = candidate.moved(probe)
    failed = moved.observed < -policy.margin and moved.p_worse <= 0.05
    return GateResult(
        gate="baseline",
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        blocking=policy.blocking,
        observed=moved.observed,
        threshold=-policy.margin,
        n=moved.n,
        interval=moved.interval(),
        sentence=f"{moved.observed:+.3f} {candidate.measure} against {candidate.cheap}",
    )


def serving(
    latency_ms: float | None, memory_mb: float | None, size_mb: float, error: str | None, policy: ServingPolicy
) -> GateResult:
    """Does the artefact load and answer in a fresh process, fast and small enough?"""
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
    return GateResult(
        gate="serving",
        verdict=Verdict.FAIL if error or over else Verdict.PASS,
        blocking=policy.blocking,
        observed=latency_ms,
        threshold=policy.max_latency_ms,
        n=1,
        sentence=sentence,
    )
