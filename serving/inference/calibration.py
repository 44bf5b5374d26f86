"""Apply a fitted calibration: logits in, probabilities and prediction sets out.

outputs.py calls the functions of its task on every batch, and those for sets and intervals where a caller asks for coverage;
pipelines/calibration/maps.py, conformal.py and intervals.py fit what they apply. It deliberately cannot fit.
"""

from collections.abc import Sequence
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from schemas.manifests import Calibration, Conformal, IntervalCalibration, SequenceCalibration

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


def apply_to_each(calibration: Calibration, logits: NDArray[np.floating]) -> Floats:
    """Calibrated probabilities of labels that do not exclude each other: [n, k] -> [n, k].

    One temperature (Guo et al. 2017), or for each label a scale and a shift (Platt 1999), inside the sigmoid.
    """
    exact = logits.astype(np.float64)
    if calibration.kind == "vector":
        return sigmoid(exact * np.array(calibration.scale) + np.array(calibration.shift))
    return sigmoid(exact / calibration.temperature)


def sigmoid(logits: Floats) -> Floats:
    """[...] -> [...]."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))


def scores(method: str, probabilities: Floats) -> Floats:
    """How badly each label fits each row: [n, k] -> [n, k].

    lac: 1 - p (Sadinle, Lei & Wasserman 2019). aps: the probability of the labels above this one (Romano, Sesia & Candès 2020,
    with u = 1 instead of a draw: the same text always gets the same set, and the top label's score of 0 keeps it from being
    empty).
    """
    if method == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    result = np.empty_like(probabilities)
    descending = np.take_along_axis(probabilities, order, axis=1)
    np.put_along_axis(result, order, descending.cumsum(axis=1) - descending, axis=1)
    return result


def threshold(ascending: Sequence[float], coverage: float) -> float:
    """The score that bounds a fresh one with at least this probability: infinite if n scores are too few for that.

    It is the ceil((n + 1) coverage)-th smallest (Vovk, Gammerman & Shafer 2005).
    """
    rank = ceil((len(ascending) + 1) * coverage - 1e-9)
    return ascending[rank - 1] if rank <= len(ascending) else inf


def prediction_sets(conformal: Conformal | None, probabilities: Floats, coverage: float) -> NDArray[np.bool_]:
    """Which labels are in each row's set: [n, k] -> [n, k]. The most probable label always is.

    A set holds the truth with at least this probability; with too few scores for that it is every label. A model that came
    without scores gets the labels that together reach `coverage`, which promises nothing.
    """
    if conformal is None or not conformal.scores:
        inside = scores("aps", probabilities) < coverage
    else:
        inside = scores(conformal.method, probabilities) <= threshold(conformal.scores, coverage)
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return np.asarray(inside)


def outer_sets(conformal: Conformal | None, probabilities: Floats, coverage: float) -> NDArray[np.bool_]:
    """Which labels are in each row's set, where several can be true: [n, k] -> [n, k].

    A set holds all true labels with at least this probability (Cauchois, Gupta & Duchi 2021): the score of a row is that of
    its least likely true label, 1 - p. A model that came without scores gets the labels that are likelier than 1 - coverage,
    which promises nothing.
    """
    limit = threshold(conformal.scores, coverage) if conformal is not None and conformal.scores else coverage
    return np.asarray(1 - probabilities <= limit)


def intervals(
    fitted: IntervalCalibration, mean: Floats, spread: Floats | None, coverage: float
) -> tuple[Floats, Floats]:
    """Lower and upper ends around predictions [n] that hold the truth with at least this probability; spread None: 1."""
    half = threshold(fitted.scores, coverage) * (np.ones_like(mean) if spread is None else spread)
    return mean - half, mean + half


def mean_logprob(token_logprobs: Sequence[Sequence[float]]) -> Floats:
    """Mean log-probability of a token of each text, 0 for an empty one: n texts -> [n]."""
    return np.array([sum(tokens) / len(tokens) if len(tokens) else 0.0 for tokens in token_logprobs])


def sequence_confidence(fitted: SequenceCalibration, token_logprobs: Sequence[Sequence[float]]) -> Floats:
    """Probability that each text is accepted: n texts -> [n]."""
    means = mean_logprob(token_logprobs)
    if fitted.kind == "none":
        return np.asarray(np.exp(means))
    return sigmoid(fitted.scale * means + fitted.shift)
