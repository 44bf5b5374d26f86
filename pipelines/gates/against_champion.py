"""Gates against the champion: is the candidate better overall, and nowhere worse?

Turns the evidence of champion and candidate on the same rows into gate results, one function a gate. verdict.py calls them.
Pure functions.
"""

from collections.abc import Sequence

import numpy as np

from pipelines.evaluation.evidence.evidence import MIN_SLICE_ROWS, Evidence, slices
from pipelines.evaluation.evidence.labels import RightOrWrong
from pipelines.gates.policy import (
    FlipsPolicy,
    ForgettingPolicy,
    MarginPolicy,
    SlicesPolicy,
    SuperiorityPolicy,
    metric_of_task,
)
from pipelines.gates.result import gate_result
from pipelines.metrics import paired_tests
from schemas.reports import GateResult, SliceChange, Verdict
from schemas.targets import labels_of

LEVEL = 0.05


def superiority(
    champion: Evidence, candidate: Evidence, look: int, alpha: float, policy: SuperiorityPolicy
) -> GateResult:
    """Pass if the candidate is better than the champion, at the level of this look."""
    comparison = candidate.compared_with(champion, metric_of_task(policy.metric, candidate.metrics))
    p, needed = comparison.p_better, None
    numbers = f"{comparison.sentence}; p = {p:.2g}, alpha at look {look} = {alpha:.2g}"
    if p <= alpha:
        verdict, sentence = Verdict.PASS, f"better than the champion: {numbers}"
    elif comparison.observed > 0:
        verdict, needed = Verdict.INSUFFICIENT, comparison.rows_needed(0.0, alpha)
        sentence = f"not shown to be better: {numbers}; about {needed} rows would settle it"
    else:
        verdict, sentence = Verdict.FAIL, f"not better than the champion: {numbers}"
    return gate_result(
        "superiority",
        verdict,
        sentence,
        blocking=policy.blocking,
        comparison=comparison,
        threshold=0.0,
        needed=needed,
    )


def non_inferiority(champion: Evidence, candidate: Evidence, policy: MarginPolicy) -> GateResult:
    """Pass if the main metric is lower than the champion's by less than the margin."""
    return main_metric_holds("non_inferiority", champion, candidate, policy.margin, policy.blocking, "the champion's")


def main_metric_holds(
    gate: str, before: Evidence, after: Evidence, margin: float, blocking: bool, whose: str
) -> GateResult:
    """Pass if the task's main metric is shown to be lower by less than `margin`; fail if it is shown to be lower."""
    comparison = after.compared_with(before)
    observed, needed = comparison.observed, None
    low, _ = comparison.interval(1 - 2 * LEVEL)
    numbers = f"{after.measure} {observed:+.4f} against {whose} on {comparison.n} rows, at least {low:+.4f} with 95 % confidence"
    if low > -margin:
        verdict, sentence = Verdict.PASS, numbers
    elif comparison.p_worse <= LEVEL or observed <= -margin:
        verdict, sentence = Verdict.FAIL, f"{numbers}: lower than the margin of {margin:.3f} allows"
    else:
        verdict, needed = Verdict.INSUFFICIENT, comparison.rows_needed(-margin, LEVEL)
        sentence = f"{numbers}: a loss of {margin:.3f} is not ruled out; about {needed} rows would settle it"
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
