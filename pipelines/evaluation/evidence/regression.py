"""Evidence for regression: one number a row.

Turns predicted and true numbers into `NumberEvidence`. evaluation/evaluators.py calls `score_number`. The gates compare the
mean squared error, which training minimises, as a share of the other model's, so that margins don't depend on the unit. The
absolute error would not do: with skewed targets, a constant median beats a model that predicts the mean.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import atanh, isfinite, sqrt, tanh
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import intervals
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Floats, OutputEvidence, Score, slices
from pipelines.metrics import paired_tests, point, probabilistic
from schemas.manifests import Calibration, IntervalCalibration
from schemas.reports import EvaluationReport, Measure, ReliabilityBin
from schemas.targets import Task, canonical
from serving.inference import calibration as applied
from serving.inference.outputs import INTERVAL_COVERAGE

# Two numbers are the same prediction if they differ by at most this share of the targets' standard deviation. A share of the
# model's own errors would be stricter for the better model.
SAME_SHARE = 0.2
RESAMPLES = 400
COVERAGES = tuple(n / 20 for n in range(1, 20))  # of the reliability diagram

NumberMetric = Literal["mse", "nll"]


@dataclass(frozen=True)
class NumberEvidence(OutputEvidence):
    """Evidence for regression; `numbers` [n] are the predictions, `truth` [n] the targets."""

    task: ClassVar[Task] = "regression"
    metrics: ClassVar[tuple[str, ...]] = get_args(NumberMetric)
    measure: ClassVar[str] = "relative reduction of the mean squared error"
    constant_baseline: ClassVar[str] = "always predicting the mean"
    region: ClassVar[str] = "intervals"

    report: EvaluationReport
    rows: Sequence[FileRow]
    numbers: Floats
    truth: Floats
    calibration: Calibration
    fold: NDArray[np.int64] | None = None  # rows of one number are judged by errors of the others

    @property
    def outputs(self) -> Floats:
        """Return the predictions [n, 1]."""
        return self.numbers[:, None]

    def same_answer(self, some: Floats, others: Floats) -> Bools:
        """Return on which rows two predictions differ by at most SAME_SHARE of the targets' standard deviation."""
        return np.asarray(np.abs(some - others)[:, 0] <= SAME_SHARE * float(self.truth.std()))

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """Return the predictions [n] as canonical texts."""
        return np.array([canonical("regression", float(f"{number:.6g}")) for number in self.numbers.tolist()])

    @property
    def confidence(self) -> None:
        """Return None: an interval states the uncertainty."""

    @property
    def passes(self) -> Bools:
        """Return the rows whose served interval contains the truth."""
        return self.covered(INTERVAL_COVERAGE)

    @cached_property
    def errors(self) -> Floats:
        """Return the absolute errors [n]."""
        return np.abs(self.truth - self.numbers)

    @property
    def score(self) -> Score:
        """Return R²: the relative reduction of the squared error against the mean of these rows."""
        constant = (self.truth - self.truth.mean()) ** 2
        gains = (constant - self.errors**2) / _scale(constant)
        return Score(float(gains.mean()), paired_tests.mean_interval(gains), 0.0)

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """Return the NLL of a normal distribution [n]."""
        return {"nll": _row_nll(self._intervals, self.numbers, self.truth, self.fold)}

    def _compared(self, before: Self, metric: str, rows: Any) -> paired_tests.MeanGain:
        """Compare by NLL, or by the squared error as a share of the other model's."""
        if metric == "nll":
            return paired_tests.MeanGain((before.losses["nll"] - self.losses["nll"])[rows], "NLL lower by {:.4f}")
        mine, theirs = self.errors[rows] ** 2, before.errors[rows] ** 2
        sentence = f"mean squared error {mine.mean():.4g} against {theirs.mean():.4g}, reduced by {{:.1%}}"
        return paired_tests.MeanGain((theirs - mine) / _scale(theirs), sentence)

    def worse_than(self, before: Self) -> list[int]:
        """Return the rows whose prediction changed and whose error grew, the largest growth first."""
        grown = self.errors - before.errors
        worse = np.flatnonzero(~self.same_answer(self.outputs, before.outputs) & (grown > 0)).tolist()
        return sorted(worse, key=lambda n: -grown[n])

    @property
    def bias(self) -> Bias:
        """Return the mean signed error, in units of the claimed standard deviation."""
        gap, p = probabilistic.mean_bias(
            (self.numbers - self.truth) / _spread(self._intervals, self.errors), self._fitted
        )
        return Bias(gap, p, f"too {'high' if gap > 0 else 'low'} by {abs(gap):.3f} standard deviations")

    @property
    def scores(self) -> Sequence[float]:
        """Return the conformal scores of intervals."""
        return self._intervals.scores

    def covered(self, coverage: float) -> Bools:
        """Return which intervals contain the truth."""
        covered = np.zeros(len(self.truth), dtype=bool)
        for held, fitted in _fits(self._intervals, self.numbers, self.truth, self.fold):
            low, high = applied.intervals(fitted, self.numbers[held], None, coverage)
            covered[held] = (low <= self.truth[held]) & (self.truth[held] <= high)
        return covered

    def mean_width(self, coverage: float) -> float:
        """Return the width of an interval, in the unit of the targets."""
        return 2 * applied.threshold(self._intervals.scores, coverage)

    @property
    def _intervals(self) -> IntervalCalibration:
        return self.calibration.intervals or IntervalCalibration()

    @property
    def _fitted(self) -> int:
        return self._intervals.fitted_rows


def score_number(
    outputs: Floats,
    _labels: Sequence[str],
    rows: Sequence[FileRow],
    *,
    version: str,
    split: str,
    calibration: Calibration | None = None,
    raw: Floats | None = None,  # noqa: ARG001 - calibration changes no prediction
    fold: NDArray[np.int64] | None = None,
) -> NumberEvidence:
    """Score predicted numbers. Raise ValueError without rows.

    Args:
        outputs: [n, 1].
        rows: n rows with their true numbers.
        version: for the report.
        split: for the report.
        calibration: with the fitted intervals; without any, the standard deviation is that of these rows' errors.
        fold: [n], where each row is judged by the errors of the rows with other numbers; None: by the calibration.

    """
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    numbers, truth = outputs[:, 0], np.array([float(row.label) for row in rows])
    fitted = calibration or Calibration()
    claimed = fitted.intervals or IntervalCalibration()
    errors, nll = np.abs(truth - numbers), _row_nll(claimed, numbers, truth, fold)
    report = EvaluationReport(
        model_version=version,
        split=split,
        n=len(rows),
        nll=float(nll.mean()),
        by_slice={
            name: {"n": len(members), "mae": float(errors[members].mean()), "nll": float(nll[members].mean())}
            for name, members in slices(rows, "regression").items()
        },
        measures=_measures(claimed, numbers, truth, nll),
        reliability=_reliability(claimed, numbers, truth),
    )
    return NumberEvidence(report, rows, numbers, truth, fitted, fold)


def _measures(fitted: IntervalCalibration, numbers: Floats, truth: Floats, nll: Floats) -> dict[str, Measure]:
    """Return MAE, RMSE, NLL, R², Spearman's correlation, coverage and width at 90 %, with bootstrap intervals over rows."""
    n, draw = len(truth), np.random.default_rng(0)
    counts = draw.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    squares = (truth - numbers) ** 2
    drawn = counts @ squares
    varies = np.maximum(counts @ truth**2 - (counts @ truth) ** 2, 1e-12)
    value = point.regression(truth, numbers)
    resampled = {
        "mae": counts @ np.abs(truth - numbers),
        "rmse": np.sqrt(drawn),
        "r2": 1 - drawn / varies,
        "nll": counts @ nll,
    }
    measures = {
        name: _measure(value.get(name, float(nll.mean())), *np.quantile(each, [0.025, 0.975]).tolist())
        for name, each in resampled.items()
    }
    rank = value["spearman"]
    if isfinite(rank) and n > 3 and abs(rank) < 1:
        half = 1.96 * sqrt((1 + rank**2 / 2) / (n - 3))  # Bonett & Wright (2000)
        measures["spearman"] = _measure(rank, tanh(atanh(rank) - half), tanh(atanh(rank) + half))
    if fitted.scores and isfinite(applied.threshold(fitted.scores, INTERVAL_COVERAGE)):
        low, high = applied.intervals(fitted, numbers, None, INTERVAL_COVERAGE)
        hits = int(((low <= truth) & (truth <= high)).sum())
        measures["coverage_90"] = _measure(hits / n, *paired_tests.share_interval(hits, n), null=INTERVAL_COVERAGE)
        width = float((high - low).mean())
        measures["width_90"] = _measure(width, width, width)
    return {name: measure for name, measure in measures.items() if isfinite(measure.value)}


def _measure(value: float, low: float, high: float, null: float | None = None) -> Measure:
    return Measure(value=value, low=low, high=high, null=null)


def _reliability(fitted: IntervalCalibration, numbers: Floats, truth: Floats) -> list[ReliabilityBin]:
    """Return nominal and observed coverage of intervals."""
    bins = []
    for coverage in COVERAGES if fitted.scores else ():
        low, high = applied.intervals(fitted, numbers, None, coverage)
        observed = float(((low <= truth) & (truth <= high)).mean())
        bins.append(ReliabilityBin(confidence=coverage, accuracy=observed, n=len(truth)))
    return bins


def _fits(
    claimed: IntervalCalibration, numbers: Floats, truth: Floats, fold: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.int64], IntervalCalibration]]:
    """Yield row numbers and the intervals that judge them: fitted on the other folds, or as claimed where there are none."""
    if fold is None or not claimed.fitted_rows:
        yield np.arange(len(truth)), claimed
        return
    for number in np.unique(fold):
        others = fold != number
        fitted = intervals.fit(numbers[others], None, truth[others]) if others.any() else claimed
        yield np.flatnonzero(~others), fitted


def _row_nll(
    claimed: IntervalCalibration, numbers: Floats, truth: Floats, fold: NDArray[np.int64] | None = None
) -> Floats:
    spread = np.empty_like(numbers)
    for held, fitted in _fits(claimed, numbers, truth, fold):
        spread[held] = _spread(fitted, np.abs(truth - numbers)[held])
    return intervals.row_nll(numbers, spread, truth)


def _spread(fitted: IntervalCalibration, errors: Floats) -> float:
    """Return the fitted standard deviation; without one, the RMSE of these rows."""
    return fitted.factor if fitted.fitted_rows else max(float(np.sqrt((errors**2).mean())), 1e-9)


def _scale(errors: Floats) -> float:
    """Return the denominator of relative errors: their mean, above 0."""
    return max(float(errors.mean()), 1e-12)
