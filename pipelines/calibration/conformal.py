"""Split-conformal prediction sets: fit their scores, and test their coverage.

Turns probabilities of calibration rows, with the truth, into `Conformal`, a part of a version's calibration that serving turns
into sets. maps.py calls the fits, the calibration gate calls `p_covered`. Pure functions.
"""

from collections.abc import Sequence
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from schemas.manifests import Conformal
from serving.inference import calibration as applied

MAX_SCORES = 2000


def fit(method: Literal["lac", "aps"], probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> Conformal:
    """Return the nonconformity scores of the truth, ascending, at most MAX_SCORES: [n, k], [n].

    The rows must be exchangeable with future rows, and the probabilities must come from a map that was not fitted on them. More
    scores than MAX_SCORES are thinned to order statistics with the same coverage.
    """
    scores = applied.scores(method, probabilities)[np.arange(len(truth)), truth]
    return Conformal(method=method, scores=_rounded_up(thinned(scores)))


def fit_outer(probabilities: NDArray[np.float64], truth: NDArray[np.bool_]) -> Conformal:
    """Return the scores of sets that contain all true labels (Cauchois, Gupta & Duchi 2021): [n, k], [n, k].

    A row's score is that of its least probable true label, and 0 if it has none.
    """
    return Conformal(method="lac", scores=_rounded_up(thinned(np.where(truth, 1 - probabilities, 0.0).max(axis=1))))


def thinned(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores [n] ascending, thinned to MAX_SCORES order statistics."""
    ordered = np.sort(scores)
    if len(ordered) > MAX_SCORES:
        ranks = np.ceil(np.arange(1, MAX_SCORES + 1) * (len(ordered) + 1) / (MAX_SCORES + 1)).astype(np.int64)
        ordered = ordered[ranks - 1]
    return np.asarray(ordered)


def _rounded_up(scores: NDArray[np.float64]) -> list[float]:
    rounded: list[float] = (np.ceil(scores * 1e9) / 1e9).tolist()
    return rounded


def p_covered(scores: Sequence[float], covered_rows: int, n: int, coverage: float) -> float:
    """Return the probability that at most `covered_rows` of n new rows are covered, if the promised coverage is true.

    Given the scores, coverage is a beta variable, and the count over n rows beta-binomial (Vovk 2012).
    """
    rank = ceil((len(scores) + 1) * coverage - 1e-9)
    if rank > len(scores):
        return 1.0  # every set has every label
    return float(betabinom.cdf(covered_rows, n, rank, len(scores) + 1 - rank))
