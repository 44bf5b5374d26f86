"""Calibration: fit the map from logits to honest probabilities, and the scores of prediction sets.

Turns logits with the truth into a `Calibration`, which is part of the artefact. candidates.py calls `fit` on fair rows
that do not judge; training uses the temperature to compare epochs. Pure functions; serving only applies what is fitted.

Several kinds of map compete, "none" among them, on rows that they were not fitted on (cross-validation); a richer one has to
beat a simpler one by a standard error. Prediction sets are fitted on the same held-out probabilities, so that a map that fits
its own rows too well does not promise too small sets.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from pipelines import conformal, measures
from schemas.artifacts import Calibration
from serving import calibration as applied

LEAST_ROWS = 30
FOLDS = 5
# A vector map is drawn towards plain temperature scaling: standard deviation of its parameters' normal prior.
SPREAD = 0.5

Kind = Literal["none", "temperature", "vector", "platt", "isotonic"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def row_nll(logits: Floats, truth: Integers) -> Floats:
    """-log softmax(logits)[truth] of each row: [n, k], [n] -> [n]."""
    return measures.row_nll(applied.softmax(logits), truth)


def fit_temperature(logits: Floats, truth: Integers) -> float:
    """The temperature between 0.05 and 20 that minimises NLL (Guo et al. 2017)."""
    found = minimize_scalar(
        lambda log_t: float(row_nll(logits / np.exp(log_t), truth).mean()),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def fit_kind(kind: Kind, logits: Floats, truth: Integers) -> Calibration:
    """One kind of map on [n, k] logits; "platt" and "isotonic" need k = 2."""
    match kind:
        case "temperature":
            return Calibration(kind=kind, temperature=fit_temperature(logits, truth))
        case "vector":
            return _fit_vector(logits, truth)
        case "platt":
            return _fit_platt(logits, truth)
        case "isotonic":
            return _fit_isotonic(logits, truth)
        case _:
            return Calibration()


def fit(logits: Floats, truth: Integers, sets: Literal["lac", "aps"] = "lac") -> Calibration:
    """The map with the lowest cross-validated NLL on [n, k] logits, and the scores of prediction sets.

    Fewer than LEAST_ROWS rows choose no map, and there are no scores without rows.
    """
    n = len(truth)
    if n < LEAST_ROWS:
        scores = conformal.fit(sets, applied.softmax(logits), truth) if n else None
        return Calibration(fitted_rows=n, conformal=scores)
    rivals: list[Kind] = ["temperature", "platt", "isotonic"] if logits.shape[1] == 2 else ["temperature", "vector"]
    held_out = {kind: _held_out(kind, logits, truth) for kind in (*rivals, "none")}
    losses = {kind: measures.row_nll(probabilities, truth) for kind, probabilities in held_out.items()}
    chosen: Kind = "none"
    for kind in rivals:
        gain = losses[chosen] - losses[kind]
        # One number is hardly ever fitted too well; more have to show that they were not.
        doubt = 0.0 if kind == "temperature" else float(gain.std(ddof=1)) / np.sqrt(n)
        if gain.mean() > doubt:
            chosen = kind
    fitted = fit_kind(chosen, logits, truth)
    return fitted.model_copy(
        update={
            "fitted_rows": n,
            "nll_before": float(row_nll(logits, truth).mean()),
            "nll_after": float(measures.row_nll(applied.apply(fitted, logits), truth).mean()),
            "held_out_nll": {kind: float(loss.mean()) for kind, loss in losses.items()},
            "conformal": conformal.fit(sets, held_out[chosen], truth),
        }
    )


def _held_out(kind: Kind, logits: Floats, truth: Integers) -> Floats:
    """Probabilities [n, k] of each row by a map that was fitted without it; every label's rows are dealt out in turn."""
    order = np.argsort(truth, kind="stable")
    result = np.zeros_like(logits, dtype=np.float64)
    for fold in range(FOLDS):
        held = order[fold::FOLDS]
        own = np.setdiff1d(order, held)
        result[held] = applied.apply(fit_kind(kind, logits[own], truth[own]), logits[held])
    return result


def _fit_vector(logits: Floats, truth: Integers) -> Calibration:
    """Vector scaling (Guo et al. 2017), with a normal prior around temperature scaling."""
    n, k = logits.shape
    logs = applied.log_softmax(logits)
    start = np.concatenate([np.full(k, 1 / fit_temperature(logs, truth)), np.zeros(k)])
    one_hot = np.zeros((n, k))
    one_hot[np.arange(n), truth] = 1

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logarithms = applied.log_softmax(logs * parameters[:k] + parameters[k:])
        beyond = np.exp(logarithms) - one_hot
        away = (parameters - start) / SPREAD
        gradient = np.concatenate([(beyond * logs).mean(axis=0), beyond.mean(axis=0)]) + away / (SPREAD * n)
        return float(-(logarithms * one_hot).sum() / n + (away**2).sum() / (2 * n)), gradient

    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return Calibration(kind="vector", scale=found[:k].tolist(), shift=found[k:].tolist())


def _fit_platt(logits: Floats, truth: Integers) -> Calibration:
    """A sigmoid of the difference of logits, towards softened targets (Platt 1999; Lin, Lin & Weng 2007)."""
    difference = logits[:, 1] - logits[:, 0]
    positive = int(truth.sum())
    targets = np.where(truth == 1, (positive + 1) / (positive + 2), 1 / (len(truth) - positive + 2))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        value = parameters[0] * difference + parameters[1]
        beyond = 1 / (1 + np.exp(-np.clip(value, -500, 500))) - targets
        return float((np.logaddexp(0, value) - targets * value).mean()), np.array(
            [(beyond * difference).mean(), beyond.mean()]
        )

    scale, shift = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B").x
    return Calibration(kind="platt", scale=[float(scale)], shift=[float(shift)])


def _fit_isotonic(logits: Floats, truth: Integers) -> Calibration:
    """A monotone line (Zadrozny & Elkan 2002). Never sure: its ends stay half a row away from 0 and 1."""
    from sklearn.isotonic import IsotonicRegression

    n = len(truth)
    model = IsotonicRegression(y_min=0.5 / n, y_max=1 - 0.5 / n, out_of_bounds="clip")
    model.fit(logits[:, 1] - logits[:, 0], truth.astype(np.float64))
    knots = zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True)
    return Calibration(kind="isotonic", knots=list(knots))
