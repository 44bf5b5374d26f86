"""Gates against the champion: is the candidate better overall, and nowhere worse?

Turns the evidence of champion and candidate on the same rows into gate results, one function a gate. verdict.py calls them.
Pure functions.
"""

from collections.abc import Sequence
from math import isfinite

import numpy as np

from pipelines.evaluation.evidence.evidence import MIN_SLICE_ROWS, Evidence, slices
from pipelines.evaluation.evidence.labels import RightOrWrong
from pipelines.gates.alpha_spending import ONE_LOOK
from pipelines.gates.policy import (
    FlipsPolicy,
    ForgettingPolicy,
    NonInferiorityPolicy,
    SlicesPolicy,
    SuperiorityPolicy,
)
from pipelines.gates.result import gate_result
from pipelines.metrics import paired_tests
from schemas.reports import GateResult, SliceChange, Verdict
from schemas.targets import labels_of


def metric_of_task(metric: str, available: Sequence[str]) -> str:
    """Return the metric that `superiority.metric` of policy.toml means for a task with these metrics, the main one first.

    policy.toml has the same metric names for all tasks, and `ratchet init` writes "accuracy" for regression too. A name that the
    task lacks therefore means its main metric.
    """
    return metric if metric in available else available[0]


def superiority(
    champion: Evidence,
    candidate: Evidence,
    look: int,
    alpha: float,
    policy: SuperiorityPolicy,
    next_alpha: float | None = None,
) -> GateResult:
    """Pass if a gain over the champion is shown at the level of this look; fail if a gain is excluded.

    `next_alpha` is the level of the next look, at which more rows would have to settle it; None: this look's.
    """
    comparison = candidate.compared_with(champion, metric_of_task(policy.metric, candidate.metrics))
    p, needed = comparison.p_better, None
    numbers = f"{comparison.sentence}; p = {p:.2g}, alpha at look {look} = {alpha:.2g}"
    if p <= alpha:
        verdict, sentence = Verdict.PASS, f"better than the champion: {numbers}"
    elif comparison.p_worse <= ONE_LOOK:
        verdict, sentence = Verdict.FAIL, f"worse than the champion: {numbers}"
    else:
        verdict = Verdict.INSUFFICIENT
        needed = comparison.rows_needed(0.0, alpha if next_alpha is None else next_alpha)
        sentence = f"not shown to be better: {numbers}{_settled_by(needed, comparison.n)}"
    return gate_result(
        "superiority",
        verdict,
        sentence,
        blocking=policy.blocking,
        comparison=comparison,
        threshold=0.0,
        needed=needed,
        p=p,
    )


def _settled_by(needed: int | None, n: int) -> str:
    """Return the end of a sentence: how many rows would settle it, if the observed change is the true one."""
    if needed is None:
        return "; no number of rows would show a gain that is not there"
    return f"; about {needed} rows instead of {n} would settle it, with a probability of {paired_tests.POWER:.0%}"


def non_inferiority(
    champion: Evidence, candidate: Evidence, policy: NonInferiorityPolicy, level: float = ONE_LOOK
) -> GateResult:
    """Pass if a loss beyond the margin in the main metric is excluded at this level."""
    blocking = policy.blocking
    return main_metric_holds(
        "non_inferiority", champion, candidate, policy.margin, blocking, "the champion's", level=level
    )


def main_metric_holds(
    gate: str,
    before: Evidence,
    after: Evidence,
    margin: float,
    blocking: bool,
    whose: str,
    level: float = ONE_LOOK,
    metric: str | None = None,
) -> GateResult:
    """Pass if the task's main metric (or `metric`) is shown to be lower by less than `margin`, at a one-sided level.

    Fail if it is shown to be lower by more; otherwise the rows are too few to tell.
    """
    comparison = after.compared_with(before, metric)
    observed, needed, measure = comparison.observed, None, metric.replace("_f1", " F1") if metric else after.measure
    low, _ = comparison.interval(1 - 2 * level)
    _, high = comparison.interval(1 - 2 * ONE_LOOK)
    numbers = f"{measure} {observed:+.4f} against {whose} on {comparison.n} rows" + (
        f", at least {low:+.4f} with {100 * (1 - level):.4g} % confidence" if isfinite(low) else ""
    )
    if low > -margin:
        verdict, sentence = Verdict.PASS, numbers
    elif high < -margin:
        verdict, sentence = Verdict.FAIL, f"{numbers}: lower by more than the margin of {margin:.3f}"
    else:
        verdict, needed = Verdict.INSUFFICIENT, comparison.rows_needed(-margin, level)
        sentence = f"{numbers}: a loss of {margin:.3f} is not ruled out" + (
            _settled_by(needed, comparison.n) if needed else ""
        )
    return gate_result(
        gate, verdict, sentence, blocking=blocking, comparison=comparison, threshold=-margin, needed=needed
    )


def slice_changes(champion: Evidence, candidate: Evidence, policy: SlicesPolicy) -> list[SliceChange]:
    """Return the change of the main metric on every slice, the most probably harmed first."""
    rows_of = slices(candidate.rows, candidate.task)
    comparisons = [candidate.compared_with(champion, rows=rows) for rows in rows_of.values()]
    harm = np.array([each.harm_probability(policy.margin) for each in comparisons])
    significant = paired_tests.holm(1 - harm, policy.alpha)
    changes = []
    for name, each, p_harm, shown in zip(rows_of, comparisons, harm.tolist(), significant.tolist(), strict=True):
        low, high = each.interval()
        weighs = each.n >= policy.min_rows
        changes.append(
            SliceChange(
                name=name,
                n=each.n,
                gained=each.gained,
                lost=each.lost,
                change=each.observed,
                low=low,
                high=high,
                p_harm=p_harm,
                weighs=weighs,
                stops=shown or (weighs and p_harm > policy.likely),
            )
        )
    return sorted(changes, key=lambda one: (not one.stops, -one.p_harm, one.name))


def slices_hold(changes: Sequence[SliceChange], policy: SlicesPolicy) -> GateResult:
    """Pass if no slice of `slice_changes` is harmed."""
    if not changes:
        return gate_result("slices", True, f"no slice has {MIN_SLICE_ROWS} rows or more", blocking=policy.blocking)
    stopping = [one for one in changes if one.stops]
    worst = changes[0]
    large = sum(one.weighs for one in changes)
    numbers = (
        f"{worst.name} {worst.change:+.3f} on {worst.n} rows"
        f" (probability of a loss beyond {policy.margin:.3f}: {worst.p_harm:.0%})"
    )
    if stopping:
        names = ", ".join(one.name for one in stopping[1:4])
        sentence = f"harmed: {numbers}" + (f"; also {names}" if names else "") + ("…" if len(stopping) > 4 else "")
    else:
        sentence = (
            f"none of {len(changes)} slices is harmed ({large} have {policy.min_rows} rows or more); worst: {numbers}"
        )
    return gate_result(
        "slices",
        not stopping,
        sentence,
        blocking=policy.blocking,
        observed=worst.change,
        threshold=-policy.margin,
        n=worst.n,
        interval=(worst.low, worst.high),
    )


def flips(champion: RightOrWrong, candidate: RightOrWrong, policy: FlipsPolicy) -> GateResult:
    """Pass if few enough right predictions became wrong."""
    change = paired_tests.accuracy_change(champion.right, candidate.right)
    share = change.lost / change.n
    low, high = paired_tests.share_interval(change.lost, change.n)
    return gate_result(
        "flips",
        low <= policy.max_share,
        f"{change.lost} of {change.n} predictions were right and are wrong now ({share:.1%}), {change.gained} the other way",
        blocking=policy.blocking,
        observed=share,
        threshold=policy.max_share,
        n=change.n,
        interval=(low, high),
    )


def forgetting(
    champion: RightOrWrong,
    candidate: RightOrWrong,
    absent: frozenset[str],
    vanished: frozenset[str],
    policy: ForgettingPolicy,
    slicing: SlicesPolicy,
) -> GateResult:
    """Pass if labels without recent feedback (`absent`) keep their accuracy, judged together as one slice.

    A label in `vanished` fails the gate: the champion learned it, and no row now trains or judges it.
    """
    if vanished:
        return gate_result("forgetting", False, _vanished(sorted(vanished)), blocking=policy.blocking)
    rows = np.flatnonzero([not absent.isdisjoint(labels_of(candidate.task, row.label)) for row in candidate.rows])
    if not len(rows):
        sentence = (
            "no reference row has a label without recent feedback" if absent else "every label has recent feedback"
        )
        return gate_result("forgetting", True, sentence, blocking=policy.blocking)
    comparison = candidate.compared_with(champion, rows=rows)
    p_harm, weighs = comparison.harm_probability(slicing.margin), comparison.n >= slicing.min_rows
    forgotten = p_harm > (slicing.likely if weighs else 1 - slicing.alpha)
    return gate_result(
        "forgetting",
        not forgotten,
        f"{len(absent)} labels without recent feedback: {candidate.measure} {comparison.observed:+.3f} on {comparison.n} rows"
        f" (probability of a loss beyond {slicing.margin:.3f}: {p_harm:.0%})",
        blocking=policy.blocking,
        comparison=comparison,
        threshold=-slicing.margin,
    )


def _vanished(labels: Sequence[str]) -> str:
    names = ", ".join(map(repr, labels[:3])) + ("…" if len(labels) > 3 else "")
    one = len(labels) == 1
    return (
        f"{names} {'is' if one else 'are'} active in the taxonomy and no row trains or judges {'it' if one else 'them'}: "
        f"retire {'it' if one else 'each'} with `ratchet labels retire {labels[0] if one else 'LABEL'}`, or add rows"
    )
