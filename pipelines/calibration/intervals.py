"""Calibrated intervals around a predicted number.

Turns predictions, their claimed standard deviations and the truth into an `IntervalCalibration`. evaluation/evaluators.py
calls `fit` for regression. Pure functions.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pipelines.calibration import conformal
from schemas.manifests import IntervalCalibration

FOLDS = 5

Floats = NDArray[np.float64]


def row_nll(mean: Floats, spread: Floats, truth: Floats) -> Floats:
    """Return the NLL of the truth under a normal distribution: [n], [n], [n] -> [n]."""
    return np.asarray(-norm.logpdf(truth, mean, spread))


def fit(mean: Floats, spread: Floats | None, truth: Floats) -> IntervalCalibration:
    """Fit the scale of the standard deviation, and the conformal scores of intervals.

    Args:
        mean: predictions [n] of calibration rows, which were not trained on.
        spread: standard deviations [n] that the model claims; None: the same for every row.
        truth: [n].

    The factor has the greatest likelihood (variance scaling, Levi et al. 2022); it is used only if it lowers the
    cross-validated NLL. Scores are |truth - mean| / spread (normalised split-conformal, Lei et al. 2018). Raise ValueError
    without rows, or if a spread is not above 0.

    """
    if not len(truth):
        raise ValueError("no rows to calibrate intervals on")
    claimed = np.ones_like(mean) if spread is None else spread
    if (claimed <= 0).any():
        raise ValueError(f"spread: every value has to be above 0, got {claimed.min():g}")
    errors = np.abs(truth - mean) / claimed
    folds = np.arange(len(truth)) % FOLDS
    held_out = np.array(
        [np.sqrt(np.mean(errors[folds != fold] ** 2)) if (folds != fold).any() else 1.0 for fold in folds]
    )
    gain = row_nll(mean, claimed, truth) - row_nll(mean, claimed * np.maximum(held_out, 1e-9), truth)
    factor = float(np.sqrt(np.mean(errors**2))) if gain.mean() > 0 else 1.0
    factor = max(factor, 1e-9)
    return IntervalCalibration(
        factor=factor,
        scores=conformal.thinned(errors).tolist(),
        fitted_rows=len(truth),
        nll_before=float(row_nll(mean, claimed, truth).mean()),
        nll_after=float(row_nll(mean, claimed * factor, truth).mean()),
    )
