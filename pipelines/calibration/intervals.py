"""Regression: honest intervals around a predicted number.

Turns predictions, their claimed spread and the truth into an `IntervalCalibration`. evaluation.py calls it
for regression as it calls calibration.py for labels. Pure functions.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pipelines.calibration import conformal
from schemas.manifests import IntervalCalibration

FOLDS = 5

Floats = NDArray[np.float64]


def row_nll(mean: Floats, spread: Floats, truth: Floats) -> Floats:
    """-log of the normal density at the truth: [n], [n], [n] -> [n]."""
    return np.asarray(-norm.logpdf(truth, mean, spread))


def fit(mean: Floats, spread: Floats | None, truth: Floats) -> IntervalCalibration:
    """Scale the spread to what was seen, and keep the errors that intervals are cut from.

    Args:
        mean: predictions [n] of fair rows that were not trained on.
        spread: standard deviations [n] that the model claims; None: it claims none, and every row gets the same.
        truth: [n].

    The factor is the one of greatest likelihood (variance scaling, Levi et al. 2022) and is used only if it lowers the
    cross-validated NLL. Intervals come from the scores |truth - mean| / spread (normalised split-conformal, Lei et al. 2018).

    """
    if not len(truth):
        raise ValueError("no rows to calibrate intervals on")
    claimed = np.ones_like(mean) if spread is None else spread
    if (claimed <= 0).any():
        raise ValueError("a claimed spread has to be above 0")
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
