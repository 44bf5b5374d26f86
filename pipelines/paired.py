"""Two models on the same rows: what changed, how surely, and how many rows would tell.

Turns right and wrong, or losses, of two models into probabilities and intervals. The gates read them; the report page plots
them. Pure functions that deliberately know no thresholds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, binomtest, norm

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

POINTS = 400  # of the quadrature in `harm_probability`
RESAMPLES = 2000


@dataclass(frozen=True)
class Change:
    """What moved between two models on n rows. Everything follows from three counts."""

    gained: int
    lost: int
    n: int

    @property
    def accuracy(self) -> float:
        """Difference in accuracy."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def p_better(self) -> float:
        """Exact one-sided p that the second model is no better (McNemar 1947)."""
        moved = self.gained + self.lost
        return float(binom.sf(self.gained - 1, moved, 0.5)) if moved else 1.0

    @property
    def p_worse(self) -> float:
        """Exact one-sided p that the second model is no worse."""
        return Change(self.lost, self.gained, self.n).p_better

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Of the difference in accuracy: Wald's with half a row added to each cell (Agresti & Min 2005)."""
        n, gained, lost = self.n + 2, self.gained + 0.5, self.lost + 0.5
        centre = (gained - lost) / n
        half = float(norm.isf((1 - level) / 2)) * sqrt(gained + lost - (gained - lost) ** 2 / n) / n
        return max(-1.0, centre - half), min(1.0, centre + half)

    def harm_probability(self, margin: float) -> float:
        """Posterior probability that accuracy fell by more than `margin`.

        (gained, lost, unmoved) has the prior Dirichlet(1/2, 1/2, 1/2) (Jeffreys). The share d of moved rows and the share of
        gains among them are then independent betas, so it is one integral over d of a beta's distribution function.
        """
        return _harm_probability(self.gained, self.lost, self.n, margin)

    def rows_to_show(self, better_than: float, alpha: float) -> int | None:
        """About how many rows show at `alpha` that the difference is above `better_than`, if it stays; None if it is not."""
        room = self.accuracy - better_than
        if room <= 0 or not self.n:
            return None
        variance = max(self.gained + self.lost, 1) / self.n - self.accuracy**2
        return ceil(max(variance, 1 / self.n) * (float(norm.isf(alpha)) / room) ** 2)


@lru_cache(10_000)
def _harm_probability(gained: int, lost: int, n: int, margin: float) -> float:
    moved = beta.ppf((np.arange(POINTS) + 0.5) / POINTS, gained + lost + 1, n - gained - lost + 0.5)
    return float(beta.cdf((1 - margin / moved) / 2, gained + 0.5, lost + 0.5).mean())


def change(before: Bools, after: Bools) -> Change:
    """[n], [n] right or wrong -> what moved from the first model to the second."""
    return Change(int((after & ~before).sum()), int((before & ~after).sum()), len(before))


def p_larger(before: Floats, after: Floats) -> float:
    """One-sided p of the paired difference of losses [n]: small when the second model's are larger. 1 if nothing differs."""
    difference = after - before
    spread = float(difference.std(ddof=1)) / sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(norm.sf(difference.mean() / spread)) if spread else 1.0


def mean_interval(difference: Floats, level: float = 0.95) -> tuple[float, float]:
    """Normal interval of the mean of paired differences [n]."""
    half = float(norm.isf((1 - level) / 2)) * float(difference.std(ddof=1)) / sqrt(len(difference))
    return float(difference.mean()) - half, float(difference.mean()) + half


def rows_wanted(observed: float, interval: tuple[float, float], n: int, alpha: float) -> int | None:
    """About how many rows show at `alpha` that a mean is above 0, given its 95 % interval on n rows; None if it is not."""
    if observed <= 0:
        return None
    spread = (interval[1] - interval[0]) / (2 * float(norm.isf(0.025)))
    return ceil(n * (float(norm.isf(alpha)) * spread / observed) ** 2)


def share_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share (Clopper & Pearson 1934)."""
    found = binomtest(hits, n).proportion_ci(level)
    return float(found.low), float(found.high)


def bootstrap_change(
    metric: Callable[[Floats], Floats], n: int, seed: int = 0
) -> tuple[float, float, tuple[float, float]]:
    """Paired bootstrap of a difference (Efron & Tibshirani 1993, §15).

    Args:
        metric: how often each row counts [draws, n] -> the difference on these rows [draws].
        n: rows.
        seed: of the resampling.

    Returns:
        The difference on all rows, the one-sided p that it is not above 0, and the 95 % percentile interval.

    """
    draw = np.random.default_rng(seed)
    drawn = metric(draw.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64))
    p = (1 + int((drawn <= 0).sum())) / (RESAMPLES + 1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(metric(np.ones((1, n)))[0]), p, (float(low), float(high))


def holm(p: NDArray[np.float64], alpha: float) -> Bools:
    """Which of these hypotheses are rejected at family-wise `alpha` (Holm 1979): [m] -> [m]."""
    order = np.argsort(p, kind="stable")
    limits = alpha / (len(p) - np.arange(len(p)))
    failed = np.flatnonzero(p[order] > limits)
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: failed[0] if len(failed) else len(p)]] = True
    return rejected
