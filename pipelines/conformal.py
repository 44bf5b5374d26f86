"""Split-conformal prediction sets: fit their scores, and check that they cover what they say.

Turns probabilities of fair rows with the truth into `Conformal`, which is part of a version's calibration; serving turns it
into sets. calibration.py fits, the calibration gate checks. Pure functions.
"""

from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from schemas.artifacts import Conformal
from serving import calibration as applied

MAX_SCORES = 2000


def fit(method: Literal["lac", "aps"], probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> Conformal:
    """Nonconformity scores of the truth: [n, k], [n] -> at most MAX_SCORES, ascending.

    The rows must be exchangeable with those to come, and the probabilities those of a map that was not fitted on them. More
    rows than MAX_SCORES are thinned to order statistics that keep the promise.
    """
    rows = np.arange(len(truth))
    found = np.sort(applied.scores(method, probabilities)[rows, truth])
    if len(found) > MAX_SCORES:
        ranks = np.ceil(np.arange(1, MAX_SCORES + 1) * (len(found) + 1) / (MAX_SCORES + 1)).astype(np.int64)
        found = found[ranks - 1]
    return Conformal(method=method, scores=(np.ceil(found * 1e9) / 1e9).tolist())


def covered(conformal: Conformal, probabilities: NDArray[np.float64], truth: NDArray[np.int64], coverage: float) -> int:
    """How many rows' sets hold the truth: [n, k], [n]. A truth that is no column is never held."""
    inside = applied.prediction_sets(conformal, probabilities, coverage)
    known = np.flatnonzero(truth < probabilities.shape[1])
    return int(inside[known, truth[known]].sum())


def p_covered(conformal: Conformal, covered_rows: int, n: int, coverage: float) -> float:
    """Probability that so few or fewer of n fresh rows are covered, if all is as promised.

    Given the scores, coverage is a beta variable, and the count over n rows beta-binomial (Vovk 2012).
    """
    rank = ceil((len(conformal.scores) + 1) * coverage - 1e-9)
    if rank > len(conformal.scores):
        return 1.0  # every set is every label
    return float(betabinom.cdf(covered_rows, n, rank, len(conformal.scores) + 1 - rank))
