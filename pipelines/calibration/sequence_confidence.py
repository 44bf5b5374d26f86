"""Confidence of a generated text: the probability that people accept it.

Turns the log-probabilities of generated tokens, and whether the text was accepted, into a `SequenceCalibration` and its
measures. evaluation/text_evaluator.py calls `fit`, evaluation/evidence/generation.py calls `measure`. Pure functions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipelines.calibration import maps, refit_null
from pipelines.metrics import probabilistic
from schemas.manifests import SequenceCalibration
from serving.inference import calibration as applied

Floats = NDArray[np.float64]


def fit(token_logprobs: Sequence[Sequence[float]], accepted: NDArray[np.bool_]) -> SequenceCalibration:
    """Fit a sigmoid of the mean token log-probability to acceptance (Platt 1999).

    Args:
        token_logprobs: n texts, each the log-probabilities of its tokens. The mean is length-normalised (Murray & Chiang
            2018): a sum would make every long text improbable. An empty text has log-probability 0.
        accepted: [n].

    Nothing is fitted on fewer than maps.MIN_ROWS rows, or on one outcome only. The confidence is then the mean token
    probability.

    """
    n = len(accepted)
    if n < maps.MIN_ROWS or accepted.all() or not accepted.any():
        return SequenceCalibration(fitted_rows=n)
    means = applied.mean_logprob(token_logprobs)
    logits = np.column_stack([np.zeros(n), means])
    fitted = maps.fit_kind("platt", logits, accepted.astype(np.int64))
    return SequenceCalibration(kind="platt", scale=fitted.scale[0], shift=fitted.shift[0], fitted_rows=n)


def cross_fitted(
    token_logprobs: Sequence[Sequence[float]], accepted: NDArray[np.bool_], fold: NDArray[np.int64]
) -> Floats:
    """Return the confidence of each of n texts by a sigmoid that was fitted without the texts of its fold: [n]."""
    confidence = np.empty(len(accepted))
    for number in np.unique(fold):
        held, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        fitted = fit([token_logprobs[n] for n in others.tolist()], accepted[others])
        confidence[held] = applied.sequence_confidence(fitted, [token_logprobs[n] for n in held.tolist()])
    return confidence


def measure(
    confidence: Floats,
    accepted: NDArray[np.bool_],
    token_logprobs: Sequence[Sequence[float]] = (),
    fold: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """Return NLL, Brier score, ECE with the 99th percentile of its null, and AUROC of the confidence of n texts [n].

    With the `fold` [n] of `cross_fitted`, the null includes the error of the fitted sigmoid.
    """
    refitted = None
    if fold is not None:
        refitted = refit_null.outcome_shift(applied.mean_logprob(token_logprobs), confidence, fold)
    both = np.column_stack([1 - confidence, confidence])
    truth = accepted.astype(np.int64)
    hits = int(accepted.sum())
    ranks = float(rankdata(confidence)[accepted].sum())
    pairs = hits * (len(accepted) - hits)
    return {
        "nll": float(probabilistic.row_nll(both, truth).mean()),
        "brier": float(probabilistic.row_brier(both, truth).mean()) / 2,
        "ece": probabilistic.ece(confidence, accepted),
        "ece_null_99": probabilistic.ece_null(confidence, refitted=refitted),
        "auroc": (ranks - hits * (hits + 1) / 2) / pairs if pairs else 0.5,
    }
