"""Generation: how likely is it that people accept a generated text?

Turns the log-probabilities of generated tokens, and whether the text was accepted, into a `SequenceCalibration`, and
into measures. evaluation/text_evaluator.py fits, evaluation/evidence/generation.py measures and says what counts as
accepted. Pure functions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipelines.calibration import maps
from pipelines.metrics import probabilistic
from schemas.manifests import SequenceCalibration
from serving.inference import calibration as applied

Floats = NDArray[np.float64]


def fit(token_logprobs: Sequence[Sequence[float]], accepted: NDArray[np.bool_]) -> SequenceCalibration:
    """A sigmoid of the mean log-probability of a token, fitted to acceptance (Platt 1999).

    Args:
        token_logprobs: n texts, each the log-probabilities of its tokens; length-normalised (Murray & Chiang 2018), because a
            sum calls every long text unlikely. An empty text counts as sure.
        accepted: [n].

    Fewer than calibration.LEAST_ROWS rows, or one outcome alone, fit nothing: the confidence is then the mean probability of a
    token.

    """
    n = len(accepted)
    if n < maps.LEAST_ROWS or accepted.all() or not accepted.any():
        return SequenceCalibration(fitted_rows=n)
    means = applied.mean_logprob(token_logprobs)
    logits = np.column_stack([np.zeros(n), means])
    fitted = maps.fit_kind("platt", logits, accepted.astype(np.int64))
    return SequenceCalibration(kind="platt", scale=fitted.scale[0], shift=fitted.shift[0], fitted_rows=n)


def measure(
    fitted: SequenceCalibration, token_logprobs: Sequence[Sequence[float]], accepted: NDArray[np.bool_]
) -> dict[str, float]:
    """NLL, Brier score, ECE with the 99th percentile of its null, and AUROC of the confidence; [n] texts."""
    confidence = applied.sequence_confidence(fitted, token_logprobs)
    both = np.column_stack([1 - confidence, confidence])
    truth = accepted.astype(np.int64)
    hits = int(accepted.sum())
    ranks = float(rankdata(confidence)[accepted].sum())
    pairs = hits * (len(accepted) - hits)
    return {
        "nll": float(probabilistic.row_nll(both, truth).mean()),
        "brier": float(probabilistic.row_brier(both, truth).mean()) / 2,
        "ece": probabilistic.ece(confidence, accepted),
        "ece_null_99": probabilistic.ece_null(confidence),
        "auroc": (ranks - hits * (hits + 1) / 2) / pairs if pairs else 0.5,
    }
