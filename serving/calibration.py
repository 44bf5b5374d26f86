"""Apply a fitted calibration: logits in, probabilities and prediction sets out.

The runtime calls `apply` on every batch, the API `prediction_sets` where a caller asks for coverage; pipelines/calibration.py
and conformal.py fit what they apply. It deliberately cannot fit.
"""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from schemas.artifacts import Calibration, Conformal, Golden

Floats = NDArray[np.float64]

GOLDEN_COVERAGE = 0.9  # of the sets among a version's golden outputs


def softmax(logits: Floats) -> Floats:
    """[n, k] -> [n, k], rows sum to 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def log_softmax(logits: Floats) -> Floats:
    """[n, k] -> [n, k], the logarithms of `softmax`."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def apply(calibration: Calibration, logits: NDArray[np.floating]) -> Floats:
    """Calibrated probabilities: [n, k] -> [n, k], rows sum to 1.

    Temperature and vector scaling are Guo et al. (2017), platt is Platt (1999), isotonic is Zadrozny & Elkan (2002). The
    last two are for two labels. Logits count up to a constant in each row, so logarithms of probabilities will do.
    """
    exact = logits.astype(np.float64)
    match calibration.kind:
        case "vector":
            return softmax(log_softmax(exact) * np.array(calibration.scale) + np.array(calibration.shift))
        case "platt":
            [scale], [shift] = calibration.scale, calibration.shift
            difference = scale * (exact[:, 1] - exact[:, 0]) + shift
            return softmax(np.column_stack([np.zeros(len(exact)), difference]))
        case "isotonic":
            at, value = np.array(calibration.knots).T
            second = np.interp(exact[:, 1] - exact[:, 0], at, value)
            return np.column_stack([1 - second, second])
        case _:
            return softmax(exact / calibration.temperature)


def scores(method: str, probabilities: Floats) -> Floats:
    """How badly each label fits each row: [n, k] -> [n, k].

    lac: 1 - p (Sadinle, Lei & Wasserman 2019). aps: the probability of all labels down to this one, itself included (Romano,
    Sesia & Candès 2020, without randomisation, so that the same text always gets the same set).
    """
    if method == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    result = np.empty_like(probabilities)
    np.put_along_axis(result, order, np.take_along_axis(probabilities, order, axis=1).cumsum(axis=1), axis=1)
    return result


def prediction_sets(conformal: Conformal | None, probabilities: Floats, coverage: float) -> NDArray[np.bool_]:
    """Which labels are in each row's set: [n, k] -> [n, k]. The most probable label always is.

    With n scores of fair rows the threshold is the ceil((n + 1) coverage)-th smallest, so that a set holds the truth with at
    least this probability (Vovk, Gammerman & Shafer 2005). With too few for that, a set is every label. A model that came
    without scores gets the labels that together reach `coverage`, which promises nothing.
    """
    if conformal is None or not conformal.scores:
        before = scores("aps", probabilities) - probabilities
        inside = before < coverage
    else:
        rank = ceil((len(conformal.scores) + 1) * coverage - 1e-9)
        if rank > len(conformal.scores):
            return np.ones(probabilities.shape, dtype=bool)
        inside = scores(conformal.method, probabilities) <= conformal.scores[rank - 1]
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return np.asarray(inside)


def golden_sets_hold(calibration: Calibration, golden: Golden) -> bool:
    """Whether the golden probabilities still give the golden sets. A version that was made without sets has none to hold."""
    if not golden.sets:
        return True
    inside = prediction_sets(calibration.conformal, np.array(golden.probabilities), GOLDEN_COVERAGE)
    return [np.flatnonzero(row).tolist() for row in inside] == golden.sets
