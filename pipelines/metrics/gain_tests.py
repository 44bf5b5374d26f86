"""Tests of a gain in accuracy or in a loss: one p-value that holds whichever of the two shows the gain.

Turns right and wrong predictions and the losses of two models on the same rows into an `EitherGain`. evidence/labels.py makes one
for `superiority.metric = "accuracy_or_brier"`. Pure functions.

The hypothesis is that the two models could be exchanged: swapping their predictions on any row changes nothing that matters.
Each row's difference then has a random sign. The exact McNemar test is that test for accuracy. For the loss, a saddlepoint
approximation replaces the enumeration of signs (Robinson 1982; Lugannani & Rice 1980): it is accurate in the far tail, where late
looks are decided. The smaller of the two p-values counts, corrected for having looked at both by their correlation (max-T,
Westfall & Young 1993).
"""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm

from pipelines.metrics.paired_tests import AccuracyChange, MeanGain

Floats = NDArray[np.float64]

NEWTON_STEPS = 60
SMALLEST_P = 1e-15
ENUMERATED = 16  # rows, of which all signs are tried


@dataclass(frozen=True)
class EitherGain:
    """The change from a first model to a second one in accuracy, tested together with the change of a loss.

    `observed`, `interval` and `harm_probability` are about accuracy, whose margin the policy bounds; `p_better` and
    `rows_needed` are about a gain in either.
    """

    accuracy: AccuracyChange
    loss: MeanGain
    correlation: float  # of the rows' changes in accuracy and in loss
    loss_name: str

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return self.accuracy.n

    @property
    def gained(self) -> int:
        """Return the number of rows that are right only now."""
        return self.accuracy.gained

    @property
    def lost(self) -> int:
        """Return the number of rows that were right only before."""
        return self.accuracy.lost

    @property
    def observed(self) -> float:
        """Return the difference in accuracy."""
        return self.accuracy.observed

    @cached_property
    def p_better(self) -> float:
        """Return the one-sided p-value of the hypothesis that neither accuracy nor the loss improved."""
        return either_p(self.accuracy.p_better, sign_flip_p(self.loss.gains), self.correlation)

    @cached_property
    def p_worse(self) -> float:
        """Return the p-value of the hypothesis that one of the two did not get worse: the larger of both."""
        return max(self.accuracy.p_worse, sign_flip_p(-self.loss.gains))

    @property
    def sentence(self) -> str:
        """Return the change in words."""
        return f"{self.accuracy.sentence}, {self.loss_name} lower by {self.loss.observed:.4f}"

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of the difference in accuracy."""
        return self.accuracy.interval(level)

    def harm_probability(self, margin: float) -> float:
        """Return the posterior probability that accuracy fell by more than `margin`."""
        return self.accuracy.harm_probability(margin)

    def rows_needed(self, better_than: float, alpha: float) -> int | None:
        """Return how many rows would show a gain in the one that needs fewer; None if neither has one."""
        needed = [each.rows_needed(better_than, alpha) for each in (self.accuracy, self.loss)]
        return min((rows for rows in needed if rows is not None), default=None)


def either_gain(accuracy: AccuracyChange, moved: Floats, loss: MeanGain, loss_name: str) -> EitherGain:
    """Return the joint change; `moved` [n] is 1 where a row was gained, -1 where one was lost."""
    spread = float(moved.std() * loss.gains.std())
    together = float(((moved - moved.mean()) * (loss.gains - loss.gains.mean())).mean())
    return EitherGain(accuracy, loss, together / spread if spread else 0.0, loss_name)


def either_p(first: float, second: float, correlation: float) -> float:
    """Return the p-value of the smaller of two p-values whose normal scores have this correlation.

    Correlation 0 gives about their sum, 1 the smaller one alone. A negative correlation counts as 0.
    """
    smaller = max(min(first, second), SMALLEST_P)
    limit, shared = float(norm.isf(smaller)), min(max(correlation, 0.0), 0.999)
    both = float(multivariate_normal([0, 0], [[1, shared], [shared, 1]]).cdf([-limit, -limit]))
    return min(1.0, max(smaller, 2 * smaller - both))


def sign_flip_p(gains: Floats) -> float:
    """Return the one-sided p-value of a mean gain above 0, if every gain [n] could have had either sign.

    With S the sum of |gain| with random signs, log E exp(tS) is the sum of log cosh(t |gain|). The saddlepoint t solves its
    derivative for the observed sum. Of at most ENUMERATED rows that differ, all signs are tried instead: few steps are no
    smooth distribution.
    """
    largest = float(np.abs(gains).max(initial=0.0))
    if not largest:
        return 1.0
    sizes = np.abs(gains)[gains != 0] / largest
    total = float(gains.sum()) / largest
    if total < 0:
        return min(1.0, 1 - sign_flip_p(-gains))
    if len(sizes) <= ENUMERATED:
        return max(_enumerated_p(sizes, total), SMALLEST_P)
    if total >= float(sizes.sum()) * (1 - 1e-12):
        return max(0.5 ** len(sizes), SMALLEST_P)  # every row improved
    low, high = 0.0, 1.0
    while float((sizes * np.tanh(high * sizes)).sum()) < total:
        high *= 2
    for _ in range(NEWTON_STEPS):
        at = (low + high) / 2
        low, high = (at, high) if float((sizes * np.tanh(at * sizes)).sum()) < total else (low, at)
    cumulant = float((np.logaddexp(at * sizes, -at * sizes) - np.log(2)).sum())
    curvature = float((sizes**2 * (1 - np.tanh(at * sizes) ** 2)).sum())
    w, u = sqrt(max(2 * (at * total - cumulant), 0.0)), at * sqrt(curvature)
    if w < 1e-4:
        return float(norm.sf(total / sqrt(float((sizes**2).sum()))))
    if u < 1e-4:  # nearly every row improved: as large a sum flips no row that is larger than what was lost
        lost = (float(sizes.sum()) - total) / 2
        return max(0.5 ** int((sizes > lost * (1 + 1e-9)).sum()), SMALLEST_P)
    return min(1.0, max(float(norm.sf(w) + norm.pdf(w) * (1 / u - 1 / w)), SMALLEST_P))


def _enumerated_p(sizes: Floats, total: float) -> float:
    """Return the share of all signs of `sizes` [n] whose sum reaches `total`."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums + size, sums - size])
    return float((sums >= total - 1e-9).mean())
