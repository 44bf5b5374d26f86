"""Paired tests of two models on the same rows: effect, significance, and how many rows would show it.

Turns right and wrong predictions, or losses, of two models into a `PairedComparison`. evaluation/evidence/ makes one, the gates
read it and the report page plots it. Pure functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, inf, isfinite, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, binomtest, norm, t

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

POINTS = 400  # of the quadrature in `harm_probability`
RESAMPLES = 2000
TAIL_DRAWS = 20  # fewer draws than this say little about a p-value: the normal tail does
POWER = 0.8  # of the number of rows that "would settle it"


class PairedComparison(Protocol):
    """The change from a first model to a second one on the same rows; higher is better."""

    @property
    def n(self) -> int:
        """Return the number of rows."""

    @property
    def gained(self) -> int:
        """Return the number of rows on which the second model is better."""

    @property
    def lost(self) -> int:
        """Return the number of rows on which the second model is worse."""

    @property
    def observed(self) -> float:
        """Return the estimated gain of the second model."""

    @property
    def p_better(self) -> float:
        """Return the one-sided p-value of the hypothesis that the second model is no better."""

    @property
    def p_worse(self) -> float:
        """Return the one-sided p-value of the hypothesis that the second model is no worse."""

    @property
    def sentence(self) -> str:
        """Return the change in words."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the confidence interval of `observed`."""

    def harm_probability(self, margin: float) -> float:
        """Return the posterior probability that the second model is worse by more than `margin`."""

    def rows_needed(self, better_than: float, alpha: float) -> int | None:
        """Return how many rows would show, at `alpha` and with probability POWER, a gain above `better_than`.

        The observed gain is taken as the true one; None if it is not above `better_than`. The number exceeds `n`.
        """


@dataclass(frozen=True)
class AccuracyChange:
    """The change in accuracy, from three counts."""

    gained: int
    lost: int
    n: int

    @property
    def sentence(self) -> str:
        """Return the change in words."""
        return f"{self.gained} rows gained, {self.lost} lost of {self.n} ({self.observed:+.3f})"

    @property
    def observed(self) -> float:
        """Return the difference in accuracy."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def p_better(self) -> float:
        """Return the exact one-sided p-value against no gain (McNemar 1947)."""
        discordant = self.gained + self.lost
        return float(binom.sf(self.gained - 1, discordant, 0.5)) if discordant else 1.0

    @property
    def p_worse(self) -> float:
        """Return the exact one-sided p-value against no loss."""
        return AccuracyChange(self.lost, self.gained, self.n).p_better

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return Wald's interval of the difference, with half a row added to each cell (Agresti & Min 2005)."""
        n, gained, lost = self.n + 2, self.gained + 0.5, self.lost + 0.5
        centre = (gained - lost) / n
        half = float(norm.isf((1 - level) / 2)) * sqrt(gained + lost - (gained - lost) ** 2 / n) / n
        return max(-1.0, centre - half), min(1.0, centre + half)

    def harm_probability(self, margin: float) -> float:
        """Return the posterior probability that accuracy fell by more than `margin`.

        (gained, lost, unchanged) has the prior Dirichlet(1/2, 1/2, 1/2) (Jeffreys). The share d of changed rows and the share of
        gains among them are then independent betas. The probability is one integral over d of a beta's distribution function.
        """
        return _harm_probability(self.gained, self.lost, self.n, margin)

    def rows_needed(self, better_than: float, alpha: float) -> int | None:
        """Return how many rows would show a gain above `better_than`; None if the observed one is not."""
        room = self.observed - better_than
        if room <= 0 or not self.n:
            return None
        variance = max(self.gained + self.lost, 1) / self.n - self.observed**2
        return max(self.n + 1, rows_for(room, sqrt(max(variance, 1 / self.n)), alpha))


@lru_cache(10_000)
def _harm_probability(gained: int, lost: int, n: int, margin: float) -> float:
    changed = beta.ppf((np.arange(POINTS) + 0.5) / POINTS, gained + lost + 1, n - gained - lost + 0.5)
    return float(beta.cdf((1 - margin / changed) / 2, gained + 0.5, lost + 0.5).mean())


def accuracy_change(before: Bools, after: Bools) -> AccuracyChange:
    """Return the change in accuracy from right and wrong predictions before and after: [n], [n]."""
    return AccuracyChange(int((after & ~before).sum()), int((before & ~after).sum()), len(before))


@dataclass(frozen=True)
class MeanGain:
    """The change in a mean loss. `gains` [n] are the first model's losses minus the second's.

    `template` is the sentence, with {} for the mean gain.
    """

    gains: Floats
    template: str

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return len(self.gains)

    @property
    def gained(self) -> int:
        """Return the number of rows whose loss is lower."""
        return int((self.gains > 0).sum())

    @property
    def lost(self) -> int:
        """Return the number of rows whose loss is higher."""
        return int((self.gains < 0).sum())

    @property
    def observed(self) -> float:
        """Return the mean reduction of the loss."""
        return float(self.gains.mean())

    @property
    def p_better(self) -> float:
        """Return the one-sided p-value against no gain."""
        return p_larger(-self.gains, np.zeros_like(self.gains))

    @property
    def p_worse(self) -> float:
        """Return the one-sided p-value against no loss."""
        return p_larger(self.gains, np.zeros_like(self.gains))

    @property
    def sentence(self) -> str:
        """Return the change in words."""
        return f"{self.template.format(self.observed)} on {self.n} rows"

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the normal interval of the mean gain."""
        return mean_interval(self.gains, level)

    def harm_probability(self, margin: float) -> float:
        """Return the posterior probability under Jeffreys' prior: Student's t, if gains are about normal."""
        spread = float(self.gains.std(ddof=1)) / sqrt(self.n) if self.n > 1 else 0.0
        if not spread:
            return float(self.observed < -margin)
        return float(t.cdf((-margin - self.observed) / spread, self.n - 1))

    def rows_needed(self, better_than: float, alpha: float) -> int | None:
        """Return how many rows would show a mean gain above `better_than`; None if the observed one is not."""
        room = self.gains - better_than
        return rows_needed_for_mean(float(room.mean()), mean_interval(room), self.n, alpha)


@dataclass(frozen=True)
class ResampledGain:
    """The change in a metric of all rows together, by paired bootstrap (Efron & Tibshirani 1993, §15).

    `metric` turns row weights [draws, n] into the difference between the models [draws].
    """

    metric: Callable[[Floats], Floats]
    n: int
    template: str
    gained: int = 0
    lost: int = 0

    @cached_property
    def _drawn(self) -> Floats:
        draw = np.random.default_rng(0)
        return self.metric(draw.multinomial(self.n, np.full(self.n, 1 / self.n), size=RESAMPLES).astype(np.float64))

    @cached_property
    def observed(self) -> float:
        """Return the difference on all rows."""
        return float(self.metric(np.ones((1, self.n)))[0])

    @property
    def p_better(self) -> float:
        """Return the share of draws without a gain; in the far tail, that of a normal distribution."""
        return self._share(self._drawn <= 0, self.observed)

    @property
    def p_worse(self) -> float:
        """Return the share of draws without a loss."""
        return self._share(self._drawn >= 0, -self.observed)

    def _share(self, draws: Bools, gain: float) -> float:
        """Return a share of draws; in the far tail, where few are left, that of a normal of the same spread.

        A share of 2,000 draws is never below .0005, where late looks ask for less.
        """
        hits, spread = int(draws.sum()), float(self._drawn.std(ddof=1))
        if hits >= TAIL_DRAWS or not spread:
            return (1 + hits) / (RESAMPLES + 1)
        return max(float(norm.sf(gain / spread)), hits / RESAMPLES)

    @property
    def sentence(self) -> str:
        """Return the change in words."""
        return f"{self.template.format(self.observed)} on {self.n} rows"

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return percentiles of the draws."""
        low, high = np.quantile(self._drawn, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def harm_probability(self, margin: float) -> float:
        """Return the share of draws with a loss beyond `margin`."""
        return float((self._drawn < -margin).mean())

    def rows_needed(self, better_than: float, alpha: float) -> int | None:
        """Return how many rows would show a gain above `better_than`; None if the observed one is not."""
        low, high = self.interval()
        return rows_needed_for_mean(self.observed - better_than, (low - better_than, high - better_than), self.n, alpha)


def p_larger(before: Floats, after: Floats) -> float:
    """Return the one-sided p-value of paired losses [n]: small if the second model's are larger, 1 if none differs."""
    difference = after - before
    spread = float(difference.std(ddof=1)) / sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(norm.sf(difference.mean() / spread)) if spread else 1.0


def mean_interval(difference: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return the normal interval of the mean of paired differences [n]; it is unbounded for one row, which has no spread."""
    if len(difference) < 2:
        return -inf, inf
    half = float(norm.isf((1 - level) / 2)) * float(difference.std(ddof=1)) / sqrt(len(difference))
    return float(difference.mean()) - half, float(difference.mean()) + half


def rows_needed_for_mean(observed: float, interval: tuple[float, float], n: int, alpha: float) -> int | None:
    """Return how many rows would show, at `alpha`, a mean above 0, from its 95 % interval on n rows; None if it is not."""
    if observed <= 0:
        return None
    error = (interval[1] - interval[0]) / (2 * float(norm.isf(0.025)))
    return max(n + 1, rows_for(observed, error * sqrt(n), alpha)) if isfinite(error) else None


def rows_for(gain: float, spread: float, alpha: float) -> int:
    """Return how many rows show a mean `gain` of rows with this spread, at `alpha` one-sided, with probability POWER."""
    return ceil(((float(norm.isf(alpha)) + float(norm.isf(1 - POWER))) * spread / gain) ** 2)


def share_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper & Pearson 1934)."""
    interval = binomtest(hits, n).proportion_ci(level)
    return float(interval.low), float(interval.high)


def holm(p: NDArray[np.float64], alpha: float) -> Bools:
    """Return which hypotheses are rejected at family-wise `alpha` (Holm 1979): [m] -> [m]."""
    order = np.argsort(p, kind="stable")
    limits = alpha / (len(p) - np.arange(len(p)))
    failed = np.flatnonzero(p[order] > limits)
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: failed[0] if len(failed) else len(p)]] = True
    return rejected
