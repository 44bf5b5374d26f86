"""`python -m tests.bench.evidence_settling`: what labels on disagreements find, what they let through, and how many they take.

Turns rounds of known truth (tests/support/settling_simulation.py) into figures: the real comparison gates and the real test on
labels judge, people's labels are drawn. `power`, `equal`, `worse` and `propensities` are its parts. It asserts nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.paired_tests import share_interval
from tests.bench.report import Figure, measure_parts
from tests.support.settling_simulation import CHURN, HORIZON, by_then, ever_promoted, settle_labelled, simulate

ROUNDS, PROJECTS = 4000, 2000
LOOKS = (1, 2, 5, 10, 20)
GAIN, LEAST, MEDIAN = 0.03, 0.95, 50
TEXTS = 1000  # disagreements in each round's older traffic
PROPENSITIES = ((0.5, 0.1), (0.5, 0.3), (1.0, 0.3))  # of feedback on wrong and on right answers


def power(_folder: Path) -> list[Figure]:
    """+3 points at churn .07, by reference rows and look; the baseline has no labels and all of alpha."""
    draw = np.random.default_rng(1)
    figures = []
    for rows in (300, 500, 1000):
        for look in LOOKS:
            outcomes = simulate(ROUNDS, rows, look, GAIN, draw)
            alone = simulate(ROUNDS, rows, look, GAIN, draw, labels=False).promoted.mean()
            name = f"+3 points, {rows} rows, look {look}: promoted within 120 labels (baseline: without)"
            figures.append(share(name, by_then(outcomes, 120), ">=", LEAST, float(alone)))
            settled = outcomes.settled & outcomes.promoted
            if look == 1:
                name = f"+3 points, {rows} rows, look 1: median labels of rounds that labels promoted"
                median = float(np.median(outcomes.labels[settled]))
                figures.append(Figure(figure=name, value=median, op="<=", target=MEDIAN, n=int(settled.sum())))
            print(
                f"{rows} rows, look {look}: {(outcomes.promoted & ~outcomes.settled).mean():.3f} at once, "
                f"{settled.mean():.3f} by labels, mean {outcomes.labels[outcomes.settled].mean():.0f} labels",
                flush=True,
            )
    return figures


def equal(_folder: Path) -> list[Figure]:
    """Equal candidates, many rounds against one champion."""
    draw = np.random.default_rng(2)
    figures = []
    for rounds, projects in ((50, PROJECTS), (200, PROJECTS // 2)):
        for labels in (True, False):
            ever = ever_promoted(projects, rounds, 500, 0.0, draw, labels=labels)
            name = f"equal candidates, {rounds} rounds, {'with' if labels else 'without'} labels: ever promoted"
            figures.append(share(name, ever, "<=", 0.05))
    return figures


def worse(_folder: Path) -> list[Figure]:
    """A point worse, one round, at the look with the largest level."""
    draw = np.random.default_rng(3)
    return [
        share(
            f"1 point worse, {rows} rows, look 1: promoted",
            simulate(10 * ROUNDS, rows, 1, -0.01, draw).promoted,
            "<=",
            0.005,
        )
        for rows in (300, 500)
    ]


def propensities(_folder: Path) -> list[Figure]:
    """People give feedback more often where the champion is wrong; the baseline labels the older texts that nobody corrected.

    The queue takes texts that came after the round was claimed, so feedback on them selects nothing. Texts left over by people
    would hide the candidate's wins.
    """
    draw, figures = np.random.default_rng(4), []
    for wrong, right in PROPENSITIES:
        for gain, op, target in ((GAIN, ">=", LEAST), (0.0, "<=", 0.05)):
            passed, left_over = _labelled(gain, wrong, right, draw)
            title = f"feedback {wrong:.0%}/{right:.0%}, {gain:+.2f}: labels pass at level .025"
            figures.append(share(f"{title} (baseline: texts left over)", passed, op, target, float(left_over.mean())))
    return figures


def _labelled(
    gain: float, wrong: float, right: float, draw: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Settle rounds by disagreements that came after the claim, and by older ones without feedback."""
    won = draw.random((ROUNDS, TEXTS)) < (CHURN + gain) / 2 / CHURN  # there the champion is wrong
    corrected = draw.random((ROUNDS, TEXTS)) < np.where(won, wrong, right)
    return settle_labelled(0.025, won[:, :HORIZON]), settle_labelled(0.025, first_left(won, ~corrected))


def first_left(won: NDArray[np.bool_], left: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the outcomes of each round's first HORIZON texts that are left."""
    order = np.argsort(~left, axis=1, kind="stable")[:, :HORIZON]
    return np.take_along_axis(won, order, axis=1)


def share(name: str, hits: NDArray[np.bool_], op: str, target: float, baseline: float | None = None) -> Figure:
    """A share of runs with its exact interval (Clopper & Pearson 1934)."""
    low, high = share_interval(int(hits.sum()), len(hits))
    return Figure(
        figure=name,
        value=float(hits.mean()),
        op=">=" if op == ">=" else "<=",
        target=target,
        n=len(hits),
        interval=(low, high),
        baseline=baseline,
    )


PARTS: Mapping[str, Callable[[Path], list[Figure]]] = {
    "power": power,
    "equal": equal,
    "worse": worse,
    "propensities": propensities,
}

if __name__ == "__main__":
    measure_parts("evidence-settling", PARTS)
