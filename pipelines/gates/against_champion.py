"""Gates that compare: is the candidate better than the champion, and nowhere worse?

Turns the evidence of champion and candidate on the same rows into gate results. gates.py calls them, one function a gate.
Pure functions; they deliberately know neither the order nor the sum of the gates.
"""

from collections.abc import Sequence

import numpy as np

from pipelines.evaluation.evidence.evidence import Evidence, slices
from pipelines.evaluation.evidence.labels import RightOrWrong
from pipelines.gates.policy import FlipsPolicy, ForgettingPolicy, MarginPolicy, SlicesPolicy, SuperiorityPolicy
from pipelines.metrics import paired_tests
from schemas.reports import GateResult, SliceChange, Verdict
from schemas.targets import labels_of

LEVEL = 0.05


def superiority(
    champion: Evidence, candidate: Evidence, look: int, alpha: float, policy: SuperiorityPolicy
) -> GateResult:
    """Is it better, at the level that this look may spend?"""
    moved = candidate.moved(champion, policy.metric)
    observed, p, needed = moved.observed, moved.p_better, moved.rows_to_show(0.0, alpha)
    shown = f"{moved.said}; p = {p:.2g}, alpha at look {look} = {alpha:.2g}"
    if p <= alpha:
        verdict, sentence, needed = Verdict.PASS, f"better than the champion: {shown}", None
    elif observed > 0:
        verdict = Verdict.INSUFFICIENT
        sentence = f"not shown to be better: {shown}; about {needed} rows would settle it"
    else:
        verdict, sentence, needed = Verdict.FAIL, f"not better than the champion: {shown}", None
    return GateResult(
        gate="superiority",
        verdict=verdict,
        blocking=policy.blocking,
        observed=observed,
        threshold=0.0,
        n=moved.n,
        needed=needed,
        interval=moved.interval(),
        sentence=sentence,
    )


def non_inferiority(champion: Evidence, candidate: Evidence, policy: MarginPolicy) -> GateResult:
    """Is accuracy on the reference at most a margin lower?"""
    return accuracy_holds("non_inferiority", champion, candidate, policy.margin, policy.blocking, "the champion's")


def accuracy_holds(
    gate: str, before: Evidence, after: Evidence, margin: float, blocking: bool, whose: str
) -> GateResult:
    """Pass if the second model's accuracy is shown not to be lower by `margin`, fail if it is shown to be lower at all; of
    numbers, its mean squared error not to be larger by that share.
    """
    moved = after.moved(before)
    low, _ = moved.interval(1 - 2 * LEVEL)
    needed = None
    said = f"{after.measure} {moved.observed:+.4f} against {whose} on {moved.n} rows, at least {low:+.4f} with 95 % confidence"
    if low > -margin:
        verdict, sentence = Verdict.PASS, said
    elif moved.p_worse <= LEVEL or moved.observed <= -margin:
        verdict, sentence = Verdict.FAIL, f"{said}: lower than the margin of {margin:.3f} allows"
    else:
        verdict, needed = Verdict.INSUFFICIENT, moved.rows_to_show(-margin, LEVEL)
        sentence = f"{said}: a loss of {margin:.3f} is not ruled out; about {needed} rows would settle it"
    return GateResult(
        gate=gate,
        verdict=verdict,
        blocking=blocking,
        observed=moved.observed,
        threshold=-margin,
        n=moved.n,
        needed=needed,
        interval=moved.interval(),
        sentence=sentence,
    )


def slice_changes(champion: Evidence, candidate: Evidence, policy: SlicesPolicy) -> list[SliceChange]:
    """Every slice, the most likely harmed first."""
    own = slices(candidate.rows, candidate.task)
    moved = [candidate.moved(champion, rows=rows) for rows in own.values()]
    harm = np.array([change.harm_probability(policy.margin) for change in moved])
    beyond_doubt = paired_tests.holm(1 - harm, policy.alpha)
    found = []
    for name, change, p_harm, shown in zip(own, moved, harm.tolist(), beyond_doubt.tolist(), strict=True):
        low, high = change.interval()
        weighs = change.n >= policy.min_rows
        found.append(
            SliceChange(
                name=name,
                n=change.n,
                gained=change.gained,
                lost=change.lost,
                change=change.observed,
                low=low,
                high=high,
                p_harm=p_harm,
                weighs=weighs,
                stops=shown or (weighs and p_harm > policy.likely),
            )
        )
    return sorted(found, key=lambda one: (not one.stops, -one.p_harm, one.name))


def slices_hold(changes: Sequence[SliceChange], policy: SlicesPolicy) -> GateResult:
    """Is any slice harmed, of those that `slice_changes` found?"""
    if not changes:
        return GateResult(
            gate="slices", verdict=Verdict.PASS, blocking=policy.blocking, sentence="no slice has 20 rows or more"
        )
    stopping = [one for one in changes if one.stops]
    worst = changes[0]
    weighing = sum(one.weighs for one in changes)
    told = f"{worst.name} {worst.change:+.3f} on {worst.n} rows (a loss beyond {policy.margin:.3f} is {worst.p_harm:.0%} likely)"
    if stopping:
        names = ", ".join(one.name for one in stopping[1:4])
        sentence = f"harmed: {told}" + (f"; also {names}" if names else "") + ("…" if len(stopping) > 4 else "")
    else:
        sentence = (
            f"none of {len(changes)} slices is harmed ({weighing} of {policy.min_rows} rows or more); likeliest {told}"
        )
    return GateResult(
        gate="slices",
        verdict=Verdict.FAIL if stopping else Verdict.PASS,
        blocking=policy.blocking,
        observed=worst.change,
        threshold=-policy.margin,
        n=worst.n,
        interval=(worst.low, worst.high),
        sentence=sentence,
    )


def flips(champion: RightOrWrong, candidate: RightOrWrong, policy: FlipsPolicy) -> GateResult:
    """Do too many answers that were right become wrong?"""
    moved = paired_tests.change(champion.right, candidate.right)
    share = moved.lost / moved.n
    low, high = paired_tests.share_interval(moved.lost, moved.n)
    return GateResult(
        gate="flips",
        verdict=Verdict.FAIL if low > policy.max_share else Verdict.PASS,
        blocking=policy.blocking,
        observed=share,
        threshold=policy.max_share,
        n=moved.n,
        interval=(low, high),
        sentence=f"{moved.lost} of {moved.n} answers were right and are wrong now ({share:.1%}), {moved.gained} the other way",
    )


def forgetting(
    champion: RightOrWrong,
    candidate: RightOrWrong,
    absent: frozenset[str],
    vanished: frozenset[str],
    policy: ForgettingPolicy,
    slicing: SlicesPolicy,
) -> GateResult:
    """Do labels that nobody gave feedback on lately keep their score? Judged together, as one slice.

    A label of `vanished` is one that the candidate cannot have been taught and no row would miss.
    """
    if vanished:
        return GateResult(
            gate="forgetting", verdict=Verdict.FAIL, blocking=policy.blocking, sentence=_vanished(sorted(vanished))
        )
    own = np.flatnonzero([not absent.isdisjoint(labels_of(candidate.task, row.label)) for row in candidate.rows])
    if not len(own):
        return GateResult(
            gate="forgetting",
            verdict=Verdict.PASS,
            blocking=policy.blocking,
            sentence="no row judges a label without recent feedback" if absent else "every label has recent feedback",
        )
    moved = candidate.moved(champion, rows=own)
    p_harm, weighs = moved.harm_probability(slicing.margin), moved.n >= slicing.min_rows
    forgotten = p_harm > (slicing.likely if weighs else 1 - slicing.alpha)
    return GateResult(
        gate="forgetting",
        verdict=Verdict.FAIL if forgotten else Verdict.PASS,
        blocking=policy.blocking,
        observed=moved.observed,
        threshold=-slicing.margin,
        n=moved.n,
        interval=moved.interval(),
        sentence=(
            f"{len(absent)} labels without recent feedback: {candidate.measure} {moved.observed:+.3f} on {moved.n} rows"
            f" (a loss beyond {slicing.margin:.3f} is {p_harm:.0%} likely)"
        ),
    )


def _vanished(labels: Sequence[str]) -> str:
    names = ", ".join(map(repr, labels[:3])) + ("…" if len(labels) > 3 else "")
    one = len(labels) == 1
    return (
        f"{names} {'is' if one else 'are'} active in the taxonomy and no row trains or judges {'it' if one else 'them'}: "
        f"retire {'it' if one else 'each'} with `ratchet labels retire {labels[0] if one else 'LABEL'}`, or give rows"
    )
