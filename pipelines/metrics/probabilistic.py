"""Probabilistic metrics: quality and calibration of probabilities, with intervals and the value of a calibrated model.

Turns probabilities [n, k] and the truth into NLL, Brier score, calibration errors and a reliability curve. The truth is [n], or
[n, k] where several labels can be true. evaluation/evidence/ calls `measure` and `measure_each`. Pure functions.

A calibration error is never 0 on a finite sample. Each therefore comes with its null: the same measure on outcomes drawn from
the model's probabilities (consistency resampling, Bröcker & Smith 2007). Intervals are bootstrap percentiles over rows, with
fixed bins. The interval of a small calibration error is biased upwards; compare such an error with its null.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from scipy.sparse import csr_array
from scipy.stats import norm

from schemas.reports import Measure, ReliabilityBin

BINS = 15
FLOOR = 1e-12
NULL_DRAWS = 1000
RESAMPLES = 400
MAX_CELLS = 20_000_000  # draws times rows: many rows need fewer draws
GRID = 512

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def row_nll(probabilities: Floats, truth: Integers) -> Floats:
    """Return -log p(truth) of each row: [n, k], [n] -> [n]."""
    return np.asarray(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], FLOOR, 1)))


def row_brier(probabilities: Floats, truth: Integers) -> Floats:
    """Return the squared distance to the one-hot truth, summed over labels (Brier 1950): [n, k], [n] -> [n]."""
    right = probabilities[np.arange(len(truth)), truth]
    return np.asarray((probabilities**2).sum(axis=1) - 2 * right + 1)


def ece(confidence: Floats, right: NDArray[np.bool_] | Floats) -> float:
    """Return the top-label ECE over 15 equal-mass bins (Naeini et al. 2015; Nguyen & O'Connor 2015): [n], [n]."""
    return float(_Binned(confidence).errors((right - confidence)[None])[0])


def binned_errors(confidence: Floats, residuals: Floats) -> Floats:
    """Return the ECE of many draws: residuals are outcome minus confidence, [draws, n]; bins are those of confidence [n]."""
    return _Binned(confidence).errors(residuals)


def ece_null(
    confidence: Floats,
    quantile: float = 0.99,
    seed: int = 0,
    refitted: Callable[[NDArray[np.bool_]], Floats] | None = None,
) -> float:
    """Return a quantile of the ECE of a perfectly calibrated model with these confidences [n]; `refitted` as for `measure`."""
    outcomes = np.random.default_rng(seed).random((NULL_DRAWS, len(confidence))) < confidence
    shift = refitted(outcomes) if refitted else 0.0
    return float(np.quantile(_Binned(confidence).errors(outcomes - confidence - shift), quantile))


def bias(confidence: Floats, right: NDArray[np.bool_], fitted_rows: int = 0) -> tuple[float, float]:
    """Return mean confidence minus accuracy, and its two-sided p-value (calibration-in-the-large, Cox 1958): [n], [n].

    It detects small gaps of equal sign, which ECE treats as noise. `fitted_rows` is the number of rows behind the calibration
    map: its sampling error adds to the variance.
    """
    n, gap = len(confidence), float(confidence.mean() - right.mean())
    variance = float((confidence * (1 - confidence)).mean()) * (1 / n + (1 / fitted_rows if fitted_rows else 0))
    return gap, float(2 * norm.sf(abs(gap) / max(variance**0.5, FLOOR)))


def mean_bias(gaps: Floats, fitted_rows: int = 0) -> tuple[float, float]:
    """Return the mean of gaps between claim and truth [n], and its two-sided p-value by their variance."""
    n, gap = len(gaps), float(gaps.mean())
    variance = float(gaps.var()) * (1 / n + (1 / fitted_rows if fitted_rows else 0))
    return gap, float(2 * norm.sf(abs(gap) / max(variance**0.5, FLOOR)))


def smooth_ece(confidence: Floats, right: NDArray[np.bool_] | Floats) -> float:
    """Return the calibration error without bins (SmoothECE, Błasiok & Nakkiran 2023): [n], [n].

    A Gaussian, reflected at 0 and 1, smooths residuals over confidence. Its width is the one that equals the mean absolute
    smoothed residual.
    """
    return float(_Smoothed(confidence).errors((right - confidence)[None])[0])


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Return confidence, accuracy and count in 15 bins of equal mass, or one bin a row with fewer rows: [n], [n]."""
    return [
        ReliabilityBin(confidence=float(confidence[rows].mean()), accuracy=float(right[rows].mean()), n=len(rows))
        for rows in _equal_mass(confidence)
    ]


def measure(
    probabilities: Floats, truth: Integers, seed: int = 0, refitted: Callable[[Integers], Floats] | None = None
) -> dict[str, Measure]:
    """Return accuracy, NLL, Brier score, ECE, class-wise and smooth ECE, each with interval and null: [n, k], [n].

    `refitted` turns imagined labels [draws, n] into shifts of the top label's confidence [draws, n], where the map that gave
    it was fitted on such labels: the nulls of ECE and smooth ECE then include the map's error.
    """
    draw = np.random.default_rng(seed)
    n, confidence, best = len(truth), probabilities.max(axis=1), probabilities.argmax(axis=1)
    imagined = _outcomes(probabilities, draw, min(NULL_DRAWS, max(200, MAX_CELLS // n)))
    counts = draw.multinomial(n, np.full(n, 1 / n), size=min(RESAMPLES, max(200, MAX_CELLS // n))).astype(np.float64)
    binned, smoothed, by_label = _Binned(confidence), _Smoothed(confidence), _Classwise(probabilities)
    squares = (probabilities**2).sum(axis=1)
    shift = refitted(imagined) if refitted else 0.0

    def of_rows(value: Callable[[Integers], Floats]) -> Measure:
        """Return the measure of a mean over rows; `value` turns outcomes [..., n] into values [..., n]."""
        return _measure(float(value(truth).mean()), counts @ value(truth) / n, value(imagined).mean(axis=1))

    def of_residuals(errors: Callable[[Floats], Floats]) -> Measure:
        residuals = (best == truth) - confidence
        null = errors((imagined == best) - confidence - shift)
        return _measure(float(errors(residuals[None])[0]), errors(counts * residuals), null)

    rows = np.arange(n)
    return {
        "accuracy": of_rows(lambda outcomes: (outcomes == best).astype(np.float64)),
        "nll": of_rows(lambda outcomes: -np.log(np.clip(probabilities[rows, outcomes], FLOOR, 1))),
        "brier": of_rows(lambda outcomes: squares - 2 * probabilities[rows, outcomes] + 1),
        "ece": of_residuals(binned.errors),
        "classwise_ece": _measure(
            float(by_label.errors(truth[None])[0]), by_label.errors(truth[None], counts), by_label.errors(imagined)
        ),
        "smooth_ece": of_residuals(smoothed.errors),
    }


def measure_each(
    probabilities: Floats,
    truth: NDArray[np.bool_],
    predicted: NDArray[np.bool_] | None = None,
    seed: int = 0,
    refitted: Callable[[NDArray[np.bool_]], Floats] | None = None,
) -> dict[str, Measure]:
    """Return subset accuracy, micro F1, NLL and Brier score summed over labels, and the ECE over all labels: [n, k] each.

    Without `predicted`, a label is predicted above a probability of 0.5.

    The bootstrap resamples whole rows; the null draws labels independently. `refitted` is as for `measure`, for imagined
    labels and probabilities [draws, n, k].
    """
    draw = np.random.default_rng(seed)
    n, cells = probabilities.shape[0], 4 * probabilities.size
    draws, at_once = min(NULL_DRAWS, max(100, MAX_CELLS // cells)), max(1, MAX_CELLS // cells)
    sizes = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    imagined = np.concatenate([draw.random((size, *probabilities.shape)) < probabilities for size in sizes])
    counts = draw.multinomial(n, np.full(n, 1 / n), size=min(RESAMPLES, max(100, MAX_CELLS // cells))).astype(
        np.float64
    )
    binned, given = _Binned(probabilities.ravel()), probabilities > 0.5 if predicted is None else predicted

    def of_each(value: Callable[[Any], Floats], drawn: Any) -> Floats:
        """Return a value of each draw; a few draws at a time, because each is as large as the rows."""
        return np.concatenate([value(drawn[start : start + at_once]) for start in range(0, len(drawn), at_once)])

    def of_rows(value: Callable[[NDArray[np.bool_]], Floats]) -> Measure:
        values = value(truth)
        null = of_each(lambda outcomes: value(outcomes).mean(axis=1), imagined)
        return _measure(float(values.mean()), counts @ values / n, null)

    def errors(residuals: Floats) -> Floats:
        return binned.errors(residuals.reshape(len(residuals), -1))

    def null_errors(outcomes: NDArray[np.bool_]) -> Floats:
        return errors(outcomes - probabilities - (refitted(outcomes) if refitted else 0.0))

    def micro_f1(outcomes: NDArray[np.bool_], weights: Floats) -> Floats:
        both, total = (outcomes & given).sum(axis=-1), outcomes.sum(axis=-1) + given.sum(axis=-1)
        return np.asarray(2 * (weights * both).sum(axis=-1) / np.maximum((weights * total).sum(axis=-1), 1))

    even = np.ones((1, n))
    residuals = truth - probabilities
    return {
        "micro_f1": _measure(
            float(micro_f1(truth, even)[0]),
            micro_f1(truth, counts),
            of_each(lambda outcomes: micro_f1(outcomes, even), imagined),
        ),
        "accuracy": of_rows(lambda outcomes: (outcomes == given).all(axis=-1).astype(np.float64)),
        "nll": of_rows(lambda outcomes: row_nll_each(probabilities, outcomes)),
        "brier": of_rows(lambda outcomes: ((outcomes - probabilities) ** 2).sum(axis=-1)),
        "ece": _measure(
            float(errors(residuals[None])[0]),
            of_each(lambda weights: errors(weights[:, :, None] * residuals), counts),
            of_each(null_errors, imagined),
        ),
    }


def row_nll_each(probabilities: Floats, truth: NDArray[np.bool_]) -> Floats:
    """Return the binary NLL of each row, summed over labels: [n, k], [..., n, k] -> [..., n]."""
    return np.asarray(-np.log(np.clip(np.where(truth, probabilities, 1 - probabilities), FLOOR, 1)).sum(axis=-1))


def _measure(value: float, resampled: Floats, null: Floats) -> Measure:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Measure(
        value=value, low=float(low), high=float(high), null=float(null.mean()), null_99=float(np.quantile(null, 0.99))
    )


def _outcomes(probabilities: Floats, draw: np.random.Generator, draws: int) -> Integers:
    """Draw labels from each row's probabilities: [n, k] -> [draws, n]."""
    cumulative = probabilities.cumsum(axis=1)
    last = probabilities.shape[1] - 1
    uniform = draw.random((len(probabilities), draws)) * cumulative[:, -1:]
    labels = [np.searchsorted(row, u, side="right") for row, u in zip(cumulative, uniform, strict=True)]
    return np.asarray(np.minimum(np.array(labels), last).T)


def _equal_mass(confidence: Floats) -> list[Integers]:
    order = np.argsort(confidence, kind="stable")
    return [np.asarray(rows) for rows in np.array_split(order, min(BINS, len(order)))]


class _Binned:
    """ECE over bins that the confidences [n] fix."""

    def __init__(self, confidence: Floats) -> None:
        bins = _equal_mass(confidence)
        self._order = np.concatenate(bins)
        self._starts = np.cumsum([0, *map(len, bins)])[:-1]

    def errors(self, residuals: Floats) -> Floats:
        """Return the error of residuals, outcome minus confidence: [draws, n] -> [draws]."""
        sums = np.add.reduceat(residuals[:, self._order], self._starts, axis=1)
        return np.asarray(np.abs(sums).sum(axis=1) / residuals.shape[1])


class _Smoothed:
    """SmoothECE for the confidences [n]; smoothing with reflection is a product after a cosine transform."""

    def __init__(self, confidence: Floats) -> None:
        cells = np.minimum((confidence * GRID).astype(np.int64), GRID - 1)
        self._order = np.argsort(cells, kind="stable")
        self._cells, self._starts = np.unique(cells[self._order], return_index=True)

    def errors(self, residuals: Floats) -> Floats:
        """Return the error of residuals, outcome minus confidence: [draws, n] -> [draws]."""
        draws, n = residuals.shape
        on_grid = np.zeros((draws, GRID))
        on_grid[:, self._cells] = np.add.reduceat(residuals[:, self._order], self._starts, axis=1) / n
        waves = dct(on_grid, axis=1, norm="ortho")
        low, high = np.zeros(draws), np.ones(draws)
        for _ in range(14):
            width = (low + high) / 2
            damped = waves * np.exp(-0.5 * (np.pi * np.arange(GRID) * width[:, None]) ** 2)
            error = np.abs(idct(damped, axis=1, norm="ortho")).sum(axis=1)
            low, high = np.where(error > width, width, low), np.where(error > width, high, width)
        return np.asarray((low + high) / 2)


class _Classwise:
    """ECE of each label's probability, averaged over labels (Nixon et al. 2019), with bins fixed by the probabilities [n, k]."""

    def __init__(self, probabilities: Floats) -> None:
        n, k = probabilities.shape
        self._cells = np.empty((n, k), dtype=np.int64)  # bin of each row and label, numbered over all labels
        for label in range(k):
            for number, rows in enumerate(_equal_mass(probabilities[:, label])):
                self._cells[rows, label] = label * BINS + number
        starts = np.arange(0, n * k + 1, k)
        self._expected = csr_array((probabilities.ravel(), self._cells.ravel(), starts), shape=(n, k * BINS))

    def errors(self, outcomes: Integers, counts: Floats | None = None) -> Floats:
        """Return the error of each draw [draws], from labels [draws, n], or from labels [1, n] and row weights [draws, n]."""
        n, width = self._expected.shape
        cells = self._cells[np.arange(n), outcomes]
        if counts is None:
            beside = cells + width * np.arange(len(cells))[:, None]
            observed = np.bincount(beside.ravel(), minlength=width * len(cells)).reshape(len(cells), width)
            gaps = observed - self._expected.sum(axis=0)
        else:
            hit = csr_array((np.ones(n), cells[0], np.arange(n + 1)), shape=(n, width))
            gaps = counts @ (hit - self._expected)
        return np.asarray(np.abs(gaps).sum(axis=1) / (n * self._cells.shape[1]))
