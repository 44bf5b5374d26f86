"""Calibration: fit a temperature, and measure how honest probabilities are.

Turns logits or probabilities with the truth into a `Calibration` or into NLL, Brier score and ECE with its null. Training,
evaluation and gates use it; serving only applies what it fits. Pure functions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from schemas.artifacts import Calibration
from serving import calibration as applied

BINS = 15
FLOOR = 1e-12
NULL_DRAWS = 1000
LEAST_ROWS = 30

Floats = NDArray[np.float64]


def row_nll(logits: Floats, truth: NDArray[np.int64]) -> Floats:
    """-log softmax(logits)[truth] of each row: [n, k], [n] -> [n]."""
    probabilities = applied.apply(Calibration(), logits)
    return np.asarray(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], FLOOR, 1)))


def fit_temperature(logits: Floats, truth: NDArray[np.int64]) -> float:
    """The temperature between 0.05 and 20 that minimises NLL (Guo et al. 2017)."""
    found = minimize_scalar(
        lambda log_t: float(row_nll(logits / np.exp(log_t), truth).mean()),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def fit(logits: Floats, truth: NDArray[np.int64]) -> Calibration:
    """Temperature scaling on [n, k] logits; kind "none" with fewer than LEAST_ROWS rows or where it does not help."""
    if len(truth) < LEAST_ROWS:
        return Calibration(fitted_rows=len(truth))
    temperature = fit_temperature(logits, truth)
    before, after = float(row_nll(logits, truth).mean()), float(row_nll(logits / temperature, truth).mean())
    if after >= before:
        return Calibration(fitted_rows=len(truth), nll_before=before, nll_after=before)
    return Calibration(
        kind="temperature", temperature=temperature, fitted_rows=len(truth), nll_before=before, nll_after=after
    )


def brier(probabilities: Floats, truth: NDArray[np.int64]) -> Floats:
    """Squared distance to the one-hot truth, summed over labels (Brier 1950): [n, k], [n] -> [n]."""
    one_hot = np.zeros_like(probabilities)
    one_hot[np.arange(len(truth)), truth] = 1
    return np.asarray(((probabilities - one_hot) ** 2).sum(axis=1))


def ece(confidence: Floats, right: NDArray[np.bool_] | Floats) -> float:
    """Top-label expected calibration error over equal-mass bins (Naeini et al. 2015; Nguyen & O'Connor 2015)."""
    order = np.argsort(confidence, kind="stable")
    gaps = [
        abs(float(confidence[rows].mean()) - float(right[rows].mean())) * len(rows)
        for rows in np.array_split(order, min(BINS, len(order)))
    ]
    return sum(gaps) / len(order)


def ece_null(confidence: Floats, quantile: float = 0.99, seed: int = 0) -> float:
    """The quantile of the ECE that a perfectly calibrated model of these confidences shows at this n.

    Consistency resampling (Bröcker & Smith 2007): outcomes are drawn as Bernoulli(confidence).
    """
    draw = np.random.default_rng(seed)
    drawn: Sequence[float] = [
        ece(confidence, (draw.random(len(confidence)) < confidence).astype(float)) for _ in range(NULL_DRAWS)
    ]
    return float(np.quantile(drawn, quantile))
