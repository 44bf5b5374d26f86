"""The null of a calibration error whose map was fitted: how far refitting moves the confidences.

Turns imagined outcomes into shifts of the confidences of a map that is refitted on those outcomes. probabilistic.py subtracts
them from the residuals of its null. evaluation/evaluators.py makes the functions. Pure functions.

A calibrated model's ECE is larger if its map was fitted on a hundred rows than if it were known, so a null that takes the map as
given stops good candidates. This is a parametric bootstrap that refits the map for every draw (Efron & Tibshirani 1993, §6.5), to
first order: one Fisher-scoring step from the fitted parameters. Each row's map is fitted without the row's own fold, as in
`maps.cross_fit`. "none" counts as a temperature, because it is chosen where the data cannot tell a temperature from 1. Platt and
isotonic maps count as vector maps of two labels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration.maps import FOLDS, SPREAD, CrossFit
from schemas.manifests import Calibration
from serving.inference import calibration as applied

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
RIDGE = 1e-9


def label_shift(logits: Floats, fitted: CrossFit) -> Callable[[Integers], Floats]:
    """Return a function from imagined labels [draws, n] to shifts of the top label's confidence [draws, n].

    `logits` are [n, k], as given to `maps.cross_fit`.
    """
    probabilities = fitted.probabilities
    n, k = probabilities.shape
    best, rows = probabilities.argmax(axis=1), np.arange(n)
    confidence = probabilities[rows, best]
    if fitted.calibration.kind in ("none", "temperature"):
        centred = logits - (probabilities * logits).sum(axis=1, keepdims=True)
        information = _by_fold((probabilities * centred**2).sum(axis=1)[None, :, None], fitted.fold)
        slope = (confidence * centred[rows, best])[:, None]
        return lambda labels: _shifts(
            _by_fold(centred[rows, labels][:, :, None], fitted.fold), information, slope, fitted
        )
    features = applied.log_softmax(logits)
    tops = (np.arange(k) == best[:, None]) - probabilities
    slope = confidence[:, None] * np.hstack([tops * features, tops])
    information = np.stack([_vector_information(probabilities[held], features[held]) for held in _held(fitted)])

    def shift(labels: Integers) -> Floats:
        scores = np.stack(
            [_vector_scores(labels[:, held], probabilities[held], features[held]) for held in _held(fitted)]
        )
        return _shifts(scores, information, slope, fitted, 1 / SPREAD**2)

    return shift


def each_label_shift(logits: Floats, fitted: CrossFit) -> Callable[[Bools], Floats]:
    """Return a function from imagined labels [draws, n, k] to shifts of all probabilities [draws, n, k].

    For labels that don't exclude each other. A vector map counts as a temperature.
    """
    probabilities = fitted.probabilities
    spread = probabilities * (1 - probabilities)
    information = (spread * logits**2).sum(axis=1)

    def shift(labels: Bools) -> Floats:
        scores = ((labels - probabilities) * logits).sum(axis=2)
        moved = np.zeros(labels.shape)
        for held in _held(fitted):
            step = (scores.sum(axis=1) - scores[:, held].sum(axis=1)) / (
                information.sum() - information[held].sum() + RIDGE
            )
            moved[:, held] = step[:, None, None] * (spread * logits)[held]
        return moved

    return shift


def outcome_shift(values: Floats, confidence: Floats, fold: Integers) -> Callable[[Bools], Floats]:
    """Return a function from imagined outcomes [draws, n] to shifts of a sigmoid's confidence [n] in `values` [n]."""
    features = np.column_stack([values, np.ones(len(values))])
    spread = confidence * (1 - confidence)
    weighted = spread[:, None] * features
    information = np.stack([weighted[fold == number].T @ features[fold == number] for number in range(FOLDS)])
    fitted = CrossFit(Calibration(), confidence[:, None], fold)

    def shift(outcomes: Bools) -> Floats:
        scores = (outcomes - confidence)[:, :, None] * features
        return _shifts(_by_fold(scores, fold), information, weighted, fitted)

    return shift


def _held(fitted: CrossFit) -> list[Integers]:
    return [np.flatnonzero(fitted.fold == fold) for fold in range(FOLDS)]


def _by_fold(scores: Floats, fold: Integers) -> Floats:
    """Return the sums of the rows' scores by fold: [draws, n, parameters] -> [folds, draws, parameters]."""
    return np.stack([scores[:, fold == number].sum(axis=1) for number in range(FOLDS)])


def _shifts(scores: Floats, information: Floats, slope: Floats, fitted: CrossFit, prior: float = 0.0) -> Floats:
    """Return the first-order shifts [draws, n] of a map that is refitted without each fold.

    Args:
        scores: sums of score contributions, [folds, draws, parameters].
        information: sums of the rows' Fisher information, [folds, parameters, parameters].
        slope: of each row's confidence, [n, parameters].
        fitted: gives the folds.
        prior: precision of the parameters' normal prior.

    """
    parameters = slope.shape[1]
    moved = np.zeros((scores.shape[1], len(slope)))
    total, everything = scores.sum(axis=0), information.sum(axis=0)
    for number, held in enumerate(_held(fitted)):
        left = everything - information[number] + (prior + RIDGE) * np.eye(parameters)
        moved[:, held] = np.linalg.solve(left, (total - scores[number]).T).T @ slope[held].T
    return moved


def _vector_information(probabilities: Floats, features: Floats) -> Floats:
    """Return the sum over rows of the Fisher information of scales and shifts: [n, k], [n, k] -> [2k, 2k]."""
    scaled = np.hstack([probabilities * features, probabilities])
    width = probabilities.shape[1]
    sums = -scaled.T @ scaled
    scales, shifts = np.arange(width), np.arange(width) + width
    sums[scales, scales] += (probabilities * features**2).sum(axis=0)
    sums[scales, shifts] += (probabilities * features).sum(axis=0)
    sums[shifts, scales] += (probabilities * features).sum(axis=0)
    sums[shifts, shifts] += probabilities.sum(axis=0)
    return np.asarray(sums)


def _vector_scores(labels: Integers, probabilities: Floats, features: Floats) -> Floats:
    """Return the sums over rows of the scores of scales and shifts: labels [draws, n] -> [draws, 2k]."""
    draws, (n, k) = len(labels), probabilities.shape
    cells = (labels + k * np.arange(draws)[:, None]).ravel()
    hit = np.broadcast_to(features[np.arange(n), labels], labels.shape).ravel()
    observed = np.bincount(cells, hit, k * draws).reshape(draws, k)
    counts = np.bincount(cells, minlength=k * draws).reshape(draws, k)
    expected = (probabilities * features).sum(axis=0), probabilities.sum(axis=0)
    return np.hstack([observed - expected[0], counts - expected[1]])
