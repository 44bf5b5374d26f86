"""Split-conformal prediction sets: fit their scores, and check that they cover what they say.

Turns probabilities of fair rows with the truth into `Conformal`, which is part of a version's calibration; serving turns it
into sets. calibration.py fits, the calibration gate checks. Pure functions.
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
    """Nonconformity scores of the truth: [n, k], [n] -> at most MAX_SCORES, ascending.

    The rows must be exchangeable with those to come, and the probabilities those of a map that was not fitted on them. More
    rows than MAX_SCORES are thinned to order statistics that keep the promise.
    """
    found = applied.scores(method, probabilities)[np.arange(len(truth)), truth]
    return Conformal(method=method, scores=_rounded_up(thinned(found)))


def fit_outer(probabilities: NDArray[np.float64], truth: NDArray[np.bool_]) -> Conformal:
    """The same for sets that hold all true labels (Cauchois, Gupta & Duchi 2021): [n, k], [n, k] true or not.

    A row's score is that of its least likely true label, and 0 if it has none.
    """
    return Conformal(method="lac", scores=_rounded_up(thinned(np.where(truth, 1 - probabilities, 0.0).max(axis=1))))


def thinned(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores [n] ascending; beyond MAX_SCORES as many order statistics."""
    found = np.sort(scores)
    if len(found) > MAX_SCORES:
        ranks = np.ceil(np.arange(1, MAX_SCORES + 1) * (len(found) + 1) / (MAX_SCORES + 1)).astype(np.int64)
        found = found[ranks - 1]
    return np.asarray(found)


def _rounded_up(scores: NDArray[np.float64]) -> list[float]:
    found: list[float] = (np.ceil(scores * 1e9) / 1e9).tolist()
    return found


def p_covered(scores: Sequence[float], covered_rows: int, n: int, coverage: float) -> float:
    """Probability that so few or fewer of n fresh rows are covered, if all is as promised.

    Given the scores, coverage is a beta variable, and the count over n rows beta-binomial (Vovk 2012).
    """
    rank = ceil((len(scores) + 1) * coverage - 1e-9)
    if rank > len(scores):
        return 1.0  # every set is every label
    return float(betabinom.cdf(covered_rows, n, rank, len(scores) + 1 - rank))
