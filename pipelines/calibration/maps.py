"""Calibration maps: from logits to calibrated probabilities, with the scores of prediction sets.

Turns logits and the truth of calibration rows into a `Calibration`, a part of the artefact. evaluation/evaluators.py calls
`cross_fit` and `cross_fit_each`; training compares epochs by the fitted temperature. Pure functions; serving applies the map.

Cross-validation chooses the kind of map, "none" included; a richer kind has to beat a simpler one by a standard error.
Prediction sets are fitted on the same held-out probabilities: an overfitted map would promise too small sets. `fit` is for
labels that exclude each other, `fit_each` for labels that don't; intervals.py is for regression.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from pipelines.calibration import conformal, thresholds
from pipelines.metrics import probabilistic
from schemas.manifests import Calibration
from serving.inference import calibration as applied

MIN_ROWS = 30
FOLDS = 5
# Standard deviation of the normal prior that draws a vector map towards temperature scaling.
SPREAD = 0.5

Kind = Literal["none", "temperature", "vector", "platt", "isotonic"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


def row_nll(logits: Floats, truth: Integers) -> Floats:
    """Return -log softmax(logits)[truth] of each row: [n, k], [n] -> [n]."""
    return probabilistic.row_nll(applied.softmax(logits), truth)


def fit_temperature(logits: Floats, truth: Integers) -> float:
    """Return the temperature between 0.05 and 20 that minimises NLL (Guo et al. 2017)."""
    best = minimize_scalar(
        lambda log_t: float(row_nll(logits / np.exp(log_t), truth).mean()),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(best.x))


def fit_kind(kind: Kind, logits: Floats, truth: Integers) -> Calibration:
    """Fit one kind of map on [n, k] logits; "platt" and "isotonic" need k = 2."""
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


@dataclass(frozen=True)
class CrossFit:
    """A map fitted on all rows, and each row's probabilities [n, k] by a map of the same kind that was fitted without it.

    `fold` [n] numbers the rows that were left out together. The first is what ships, the second is how the rows judge it. So are
    the `answers` [n, k] where several labels can be true: each row's labels by thresholds that were fitted without its fold.
    """

    calibration: Calibration
    probabilities: Floats
    fold: Integers
    answers: Bools | None = None


def fit(logits: Floats, truth: Integers, sets: Literal["lac", "aps"] = "lac") -> Calibration:
    """Fit as `cross_fit` does, and return the map alone."""
    return cross_fit(logits, truth, sets).calibration


def cross_fit(logits: Floats, truth: Integers, sets: Literal["lac", "aps"] = "lac") -> CrossFit:
    """Fit the map with the lowest cross-validated NLL on [n, k] logits, and the scores of prediction sets.

    Fewer than MIN_ROWS rows give no map; no rows give no scores.
    """
    n = len(truth)
    if n < MIN_ROWS:
        probabilities = applied.softmax(logits)
        scores = conformal.fit(sets, probabilities, truth) if n else None
        return CrossFit(Calibration(fitted_rows=n, conformal=scores), probabilities, _folds(np.arange(n)))
    rivals: list[Kind] = ["temperature", "platt", "isotonic"] if logits.shape[1] == 2 else ["temperature", "vector"]
    order = np.argsort(truth, kind="stable")  # stratified by label: folds take every FOLDS-th row
    held_out = {kind: _held_out(kind, fit_kind, applied.apply, logits, truth, order) for kind in (*rivals, "none")}
    losses = {kind: probabilistic.row_nll(probabilities, truth) for kind, probabilities in held_out.items()}
    chosen = _chosen(rivals, losses)
    fitted = fit_kind(chosen, logits, truth)
    measured = {
        "fitted_rows": n,
        "nll_before": float(row_nll(logits, truth).mean()),
        "nll_after": float(probabilistic.row_nll(applied.apply(fitted, logits), truth).mean()),
        "held_out_nll": {kind: float(loss.mean()) for kind, loss in losses.items()},
        "conformal": conformal.fit(sets, held_out[chosen], truth),
    }
    return CrossFit(fitted.model_copy(update=measured), held_out[chosen], _folds(order))


def fit_kind_each(kind: Kind, logits: Floats, truth: Bools) -> Calibration:
    """Fit "none", "temperature" or "vector" on [n, k] logits of labels that don't exclude each other."""
    if kind == "none":
        return Calibration()
    best = minimize_scalar(
        lambda log_t: float(_logistic_losses(logits / np.exp(log_t), truth).mean()),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    temperature = float(np.exp(best.x))
    if kind == "temperature":
        return Calibration(kind=kind, temperature=temperature)

    def losses(values: Floats) -> tuple[Floats, Floats]:
        return _logistic_losses(values, truth), applied.sigmoid(values)

    scale, shift = _fit_scales(logits, truth.astype(np.float64), temperature, losses)
    return Calibration(kind="vector", scale=scale.tolist(), shift=shift.tolist())


def fit_each(logits: Floats, truth: Bools, metric: str = "micro_f1", at_least_one: bool | None = None) -> Calibration:
    """Fit as `cross_fit_each` does, and return the map alone."""
    return cross_fit_each(logits, truth, metric, at_least_one).calibration


def cross_fit_each(
    logits: Floats, truth: Bools, metric: str = "micro_f1", at_least_one: bool | None = None
) -> CrossFit:
    """Fit as `cross_fit` does, for labels that don't exclude each other: [n, k], [n, k]; and their thresholds.

    `metric` and `at_least_one` are as for `thresholds.fit`. The answers of each fold are by thresholds that were fitted without
    it, on held-out probabilities of the other folds alone.
    """
    n = len(truth)
    if n < MIN_ROWS:
        probabilities = applied.sigmoid(logits)
        every = thresholds.always_one(truth, at_least_one)
        fitted = Calibration(
            fitted_rows=n, conformal=conformal.fit_outer(probabilities, truth) if n else None, at_least_one=every
        )
        return CrossFit(fitted, probabilities, _folds(np.arange(n)), applied.answered(fitted, probabilities))
    rivals: list[Kind] = ["temperature", "vector"]
    maps = (fit_kind_each, applied.apply_to_each)
    held_out = {kind: _held_out(kind, *maps, logits, truth, np.arange(n)) for kind in (*rivals, "none")}
    losses = {kind: probabilistic.row_nll_each(probabilities, truth) for kind, probabilities in held_out.items()}
    chosen = _chosen(rivals, losses)
    fitted = fit_kind_each(chosen, logits, truth)
    after = probabilistic.row_nll_each(applied.apply_to_each(fitted, logits), truth)
    measured = {
        "fitted_rows": n,
        "nll_before": float(_logistic_losses(logits, truth).mean()),
        "nll_after": float(after.mean()),
        "held_out_nll": {kind: float(loss.mean()) for kind, loss in losses.items()},
        "conformal": conformal.fit_outer(held_out[chosen], truth),
        **thresholds.fit(held_out[chosen], truth, metric, at_least_one),
    }
    fold, answers = _folds(np.arange(n)), np.zeros_like(truth)
    for number in range(FOLDS):
        held, kept = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        inner = _held_out(chosen, *maps, logits[kept], truth[kept], np.arange(len(kept)))
        rule = Calibration.model_validate(thresholds.fit(inner, truth[kept], metric, at_least_one))
        answers[held] = applied.answered(rule, held_out[chosen][held])
    return CrossFit(fitted.model_copy(update=measured), held_out[chosen], fold, answers)


def _folds(order: Integers) -> Integers:
    """Return the fold of each row [n], as `_held_out` draws them from this order."""
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % FOLDS
    return fold


def _chosen(rivals: Sequence[Kind], losses: Mapping[Kind, Floats]) -> Kind:
    """Return the kind to use, by held-out losses [n]; `rivals` go from the simplest to the richest."""
    chosen: Kind = "none"
    for kind in rivals:
        gain = losses[chosen] - losses[kind]
        # One parameter hardly overfits. Richer maps need a gain of a standard error.
        doubt = 0.0 if kind == "temperature" else float(gain.std(ddof=1)) / np.sqrt(len(gain))
        if gain.mean() > doubt:
            chosen = kind
    return chosen


def _held_out(
    kind: Kind,
    fitting: Callable[[Kind, Floats, NDArray[Any]], Calibration],
    applying: Callable[[Calibration, Floats], Floats],
    logits: Floats,
    truth: NDArray[Any],
    order: Integers,
) -> Floats:
    """Return the probabilities [n, k] of each row by a map fitted without it; folds alternate in `order`."""
    result = np.zeros_like(logits, dtype=np.float64)
    for fold in range(FOLDS):
        held = order[fold::FOLDS]
        kept = np.setdiff1d(order, held)
        result[held] = applying(fitting(kind, logits[kept], truth[kept]), logits[held])
    return result


def _fit_vector(logits: Floats, truth: Integers) -> Calibration:
    """Fit vector scaling (Guo et al. 2017)."""
    n, k = logits.shape
    logs = applied.log_softmax(logits)
    one_hot = np.zeros((n, k))
    one_hot[np.arange(n), truth] = 1

    def losses(values: Floats) -> tuple[Floats, Floats]:
        logarithms = applied.log_softmax(values)
        return -(logarithms * one_hot).sum(axis=1), np.exp(logarithms)

    scale, shift = _fit_scales(logs, one_hot, fit_temperature(logs, truth), losses)
    return Calibration(kind="vector", scale=scale.tolist(), shift=shift.tolist())


def _fit_scales(
    logits: Floats, targets: Floats, temperature: float, losses: Callable[[Floats], tuple[Floats, Floats]]
) -> tuple[Floats, Floats]:
    """Return a scale and a shift for each label [k], with a normal prior around one temperature.

    `losses` turns scaled logits [n, k] into NLL [n] and probabilities [n, k]; targets [n, k] are 0 or 1.
    """
    n, k = logits.shape
    start = np.concatenate([np.full(k, 1 / temperature), np.zeros(k)])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        rows, probabilities = losses(logits * parameters[:k] + parameters[k:])
        beyond = probabilities - targets
        away = (parameters - start) / SPREAD
        gradient = np.concatenate([(beyond * logits).mean(axis=0), beyond.mean(axis=0)]) + away / (SPREAD * n)
        return float(rows.mean() + (away**2).sum() / (2 * n)), gradient

    best = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return best[:k], best[k:]


def _logistic_losses(logits: Floats, truth: Bools) -> Floats:
    """Return the binary NLL summed over labels: [n, k], [n, k] -> [n]."""
    return np.asarray((np.logaddexp(0, logits) - truth * logits).sum(axis=1))


def _fit_platt(logits: Floats, truth: Integers) -> Calibration:
    """Fit a sigmoid of the logit difference to softened targets (Platt 1999; Lin, Lin & Weng 2007)."""
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
    """Fit isotonic regression (Zadrozny & Elkan 2002), bounded half a row away from 0 and 1."""
    from sklearn.isotonic import IsotonicRegression

    n = len(truth)
    model = IsotonicRegression(y_min=0.5 / n, y_max=1 - 0.5 / n, out_of_bounds="clip")
    model.fit(logits[:, 1] - logits[:, 0], truth.astype(np.float64))
    knots = zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True)
    return Calibration(kind="isotonic", knots=list(knots))
