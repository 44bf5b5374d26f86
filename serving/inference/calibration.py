"""Apply a fitted calibration: logits in, probabilities and prediction sets out.

outputs.py calls these functions on every batch, and those for sets and intervals where a request gives a coverage. The parameters
are fitted in pipelines/calibration: maps.py, conformal.py and intervals.py. numpy is all that is needed here.
"""

from collections.abc import Sequence
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from schemas.manifests import Calibration, Conformal, IntervalCalibration, SequenceCalibration

Floats = NDArray[np.float64]

GOLDEN_COVERAGE = 0.9  # of the prediction sets among a version's golden outputs


def softmax(logits: Floats) -> Floats:
    """Return the softmax of each row: [n, k] -> [n, k], rows sum to 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithms of `softmax`: [n, k] -> [n, k]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def apply(calibration: Calibration, logits: NDArray[np.floating]) -> Floats:
    """Return calibrated probabilities: [n, k] -> [n, k], rows sum to 1.

    Temperature and vector scaling: Guo et al. (2017); platt: Platt (1999); isotonic: Zadrozny & Elkan (2002). The last two
    need two labels. The result does not change if a constant is added to a row, so logarithms of probabilities may be given
    as logits.
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


def apply_to_each(calibration: Calibration, logits: NDArray[np.floating]) -> Floats:
    """Return calibrated probabilities of labels that do not exclude each other: [n, k] -> [n, k].

    One temperature (Guo et al. 2017), or for each label a scale and a shift (Platt 1999), inside the sigmoid.
    """
    exact = logits.astype(np.float64)
    if calibration.kind == "vector":
        return sigmoid(exact * np.array(calibration.scale) + np.array(calibration.shift))
    return sigmoid(exact / calibration.temperature)


def sigmoid(logits: Floats) -> Floats:
    """Return the logistic sigmoid of each element; the shape is kept."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))


def scores(method: str, probabilities: Floats) -> Floats:
    """Return the nonconformity score of each label in each row: [n, k] -> [n, k].

    lac: 1 - p (Sadinle, Lei & Wasserman 2019). aps: the total probability of the likelier labels (Romano, Sesia & Candès
    2020, with u = 1 instead of a random draw: the same text always gets the same set, and the top label's score of 0 keeps
    the set non-empty).
    """
    if method == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    result = np.empty_like(probabilities)
    descending = np.take_along_axis(probabilities, order, axis=1)
    np.put_along_axis(result, order, descending.cumsum(axis=1) - descending, axis=1)
    return result


def threshold(ascending: Sequence[float], coverage: float) -> float:
    """Return the score that bounds a new one with at least this probability; infinite if there are too few scores.

    It is the ceil((n + 1) coverage)-th smallest (Vovk, Gammerman & Shafer 2005).
    """
    rank = ceil((len(ascending) + 1) * coverage - 1e-9)
    return ascending[rank - 1] if rank <= len(ascending) else inf


def prediction_sets(conformal: Conformal | None, probabilities: Floats, coverage: float) -> NDArray[np.bool_]:
    """Return which labels are in each row's prediction set: [n, k] -> [n, k]. The most probable label always is.

    A set holds the true label with at least this probability; it holds every label if there are too few scores. A model without
    scores gets the likeliest labels that together reach `coverage`, without a guarantee.
    """
    if conformal is None or not conformal.scores:
        inside = scores("aps", probabilities) < coverage
    else:
        inside = scores(conformal.method, probabilities) <= threshold(conformal.scores, coverage)
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return np.asarray(inside)


def outer_sets(conformal: Conformal | None, probabilities: Floats, coverage: float) -> NDArray[np.bool_]:
    """Return which labels are in each row's prediction set, if several can be true: [n, k] -> [n, k].

    A set holds all true labels with at least this probability (Cauchois, Gupta & Duchi 2021): the score of a row is that of
    its least likely true label, 1 - p. A model without scores gets the labels likelier than 1 - coverage, without a
    guarantee.
    """
    limit = threshold(conformal.scores, coverage) if conformal is not None and conformal.scores else coverage
    return np.asarray(1 - probabilities <= limit)


def answered(calibration: Calibration, probabilities: Floats) -> NDArray[np.bool_]:
    """Return which labels are each row's answer, if several can be true: [n, k] -> [n, k].

    A label is answered above its threshold, 0.5 unless fitted; with `at_least_one`, the likeliest one if none is.
    """
    inside = np.asarray(probabilities > (np.array(calibration.thresholds) if calibration.thresholds else 0.5))
    if calibration.at_least_one:
        [empty] = np.nonzero(~inside.any(axis=1))
        inside[empty, probabilities[empty].argmax(axis=1)] = True
    return inside


def answer_confidence(probabilities: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Return the probability that each answer is exactly right, labels taken as independent: [n, k], [n, k] -> [n]."""
    return np.asarray(np.where(inside, probabilities, 1 - probabilities).prod(axis=1))


def intervals(
    fitted: IntervalCalibration, mean: Floats, spread: Floats | None, coverage: float
) -> tuple[Floats, Floats]:
    """Return lower and upper ends [n] of prediction intervals with this coverage around `mean` [n]; spread None means 1."""
    half = threshold(fitted.scores, coverage) * (np.ones_like(mean) if spread is None else spread)
    return mean - half, mean + half


def mean_logprob(token_logprobs: Sequence[Sequence[float]]) -> Floats:
    """Return the mean token log-probability of each text, 0 for an empty one: n texts -> [n]."""
    return np.array([sum(tokens) / len(tokens) if len(tokens) else 0.0 for tokens in token_logprobs])


def sequence_confidence(fitted: SequenceCalibration, token_logprobs: Sequence[Sequence[float]]) -> Floats:
    """Return the calibrated probability that people accept each text: n texts -> [n]."""
    means = mean_logprob(token_logprobs)
    if fitted.kind == "none":
        return np.asarray(np.exp(means))
    return sigmoid(fitted.scale * means + fitted.shift)
