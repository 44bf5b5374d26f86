"""Thresholds of a multilabel task: from which probability a label is part of the answer.

Turns probabilities and the truth of calibration rows into `Calibration.thresholds`, by the metric that the policy names. maps.py
calls `fit`; serving/inference/calibration.py applies the thresholds. Pure functions.

The best threshold for F1 is half of the best F1, not .5 (Lipton, Elkan & Narayanaswamy 2014). One threshold for all labels has
little to overfit; one for each label is used only if it is better by a standard error on rows held out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.manifests import Calibration
from serving.inference import calibration as applied

DOUBT = 0.5  # standard errors by which a threshold may be worse than the best
FOLDS, DRAWS, MOST_CANDIDATES, LEAST_POSITIVES = 5, 200, 100, 5

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def fit(probabilities: Floats, truth: Bools, metric: str, at_least_one: bool | None = None) -> dict[str, Any]:
    """Return the fields `thresholds` and `at_least_one` of a calibration.

    Args:
        probabilities: [n, k] of calibration rows, from a map that was not fitted on them.
        truth: [n, k].
        metric: "accuracy" or "accuracy_or_brier" (all labels of a row are right) or "macro_f1"; any other means micro F1.
        at_least_one: whether every answer has a label; None: if every one of these rows has.

    """
    metric, every = "accuracy" if metric == "accuracy_or_brier" else metric, always_one(truth, at_least_one)
    one = [_one(probabilities, truth, metric, every)] * truth.shape[1]
    if metric != "accuracy" and _gains_by_label(probabilities, truth, metric, every):
        return {"thresholds": _by_label(probabilities, truth, one[0]), "at_least_one": every}
    return {"thresholds": one, "at_least_one": every}


def always_one(truth: Bools, at_least_one: bool | None) -> bool:
    """Return whether every answer has a label: as it is wished, or if every row of the truth [n, k] has one."""
    return bool(len(truth) and truth.any(axis=1).all()) if at_least_one is None else at_least_one


def quality(predicted: Bools, truth: Bools, metric: str, counts: Floats | None = None) -> Floats:
    """Return the metric of predicted labels [n, k] under each draw of row weights [draws, n]; [1] without draws."""
    weights = np.ones((1, len(truth))) if counts is None else counts
    if metric == "accuracy":
        return np.asarray(weights @ (predicted == truth).all(axis=1) / weights.sum(axis=1))
    both, total = (predicted & truth).astype(np.float64), predicted.astype(np.float64) + truth
    if metric == "macro_f1":
        occurring = truth.any(axis=0)
        hits, all_ = weights @ both[:, occurring], weights @ total[:, occurring]
        return np.asarray((2 * hits / np.maximum(all_, 1)).mean(axis=1))
    return np.asarray(2 * (weights @ both.sum(axis=1)) / np.maximum(weights @ total.sum(axis=1), 1))


def _one(probabilities: Floats, truth: Bools, metric: str, at_least_one: bool) -> float:
    """Return one threshold for all labels: of those that are hardly worse than the best, the likeliest.

    That is the one nearest to half of the best F1, which is where it lies if probabilities are calibrated, or nearest to 0.5 for
    accuracy. The best of few rows alone is noise: its score varies by more than the thresholds around it differ.
    """
    n, k = truth.shape
    candidates = _candidates(probabilities)
    counts = np.vstack([np.ones(n), np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS)])
    # The first draw is of the rows themselves.
    scores = np.array(
        [quality(_decided(probabilities, [c] * k, at_least_one), truth, metric, counts) for c in candidates]
    )
    best = int(scores[:, 0].argmax())
    behind = scores[best] - scores
    fair = candidates[behind[:, 0] <= DOUBT * behind[:, 1:].std(axis=1)]
    likeliest = 0.5 if metric == "accuracy" else scores[best, 0] / 2
    return float(fair[np.abs(fair - likeliest).argmin()])


def _by_label(probabilities: Floats, truth: Bools, otherwise: float) -> list[float]:
    """Return each label's best threshold for its F1; `otherwise` for labels with too few positive rows."""
    thresholds = []
    for column, positive in zip(probabilities.T, truth.T, strict=True):
        candidates = _candidates(column)
        predicted = column[:, None] > candidates
        f1 = 2 * (predicted & positive[:, None]).sum(axis=0) / np.maximum(predicted.sum(axis=0) + positive.sum(), 1)
        thresholds.append(float(candidates[f1.argmax()]) if positive.sum() >= LEAST_POSITIVES else otherwise)
    return thresholds


def _gains_by_label(probabilities: Floats, truth: Bools, metric: str, at_least_one: bool) -> bool:
    """Return whether thresholds by label beat one threshold on rows held out, by more than a standard error."""
    n, k = truth.shape
    single, separate = np.zeros((n, k), dtype=bool), np.zeros((n, k), dtype=bool)
    for fold in range(FOLDS):
        held = np.arange(n) % FOLDS == fold
        one = _one(probabilities[~held], truth[~held], metric, at_least_one)
        by_label = _by_label(probabilities[~held], truth[~held], one)
        single[held] = _decided(probabilities[held], [one] * k, at_least_one)
        separate[held] = _decided(probabilities[held], by_label, at_least_one)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float64)
    drawn = quality(separate, truth, metric, counts) - quality(single, truth, metric, counts)
    gain = float((quality(separate, truth, metric) - quality(single, truth, metric))[0])
    return gain > float(drawn.std())


def _candidates(probabilities: Floats) -> Floats:
    """Return the thresholds to try, between the probabilities: every one, or quantiles of many."""
    values = np.unique(probabilities)
    if len(values) > MOST_CANDIDATES:
        values = np.unique(np.quantile(values, np.linspace(0, 1, MOST_CANDIDATES)))
    return np.concatenate([[values[0] / 2], (values[:-1] + values[1:]) / 2, [(values[-1] + 1) / 2]])


def _decided(probabilities: Floats, thresholds: Sequence[float], at_least_one: bool) -> Bools:
    rule = Calibration(thresholds=list(thresholds), at_least_one=at_least_one)
    return applied.answered(rule, probabilities)
