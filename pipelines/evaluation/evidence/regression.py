"""Evidence of models that answer with a number.

Turns numbers and true numbers into `Evidence`. evaluation.py calls `score_number`. There is no right and wrong: what gates
compare is the mean squared error, which training lowers, as a share of the other model's, so that margins mean the same in any
unit. Not the absolute error: where targets are skewed, guessing their median beats every model that says the mean. It
deliberately judges nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import atanh, isfinite, sqrt, tanh
from typing import Any, ClassVar, Self

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

ALIKE = 0.25  # two numbers are one answer if they differ by less than this share of the errors do
RESAMPLES = 400
CLAIMS = tuple(n / 20 for n in range(1, 20))


@dataclass(frozen=True)
class NumberEvidence(OutputEvidence):
    """Regression; `numbers` [n] and `truth` [n]."""

    task: ClassVar[Task] = "regression"
    measure: ClassVar[str] = "share of the squared error saved"
    guess: ClassVar[str] = "always guessing the mean"
    bounds: ClassVar[str] = "intervals"

    report: EvaluationReport
    rows: Sequence[FileRow]
    numbers: Floats
    truth: Floats
    calibration: Calibration

    @property
    def outputs(self) -> Floats:
        """[n, 1]."""
        return self.numbers[:, None]

    def alike(self, some: Floats, others: Floats) -> Bools:
        """Closer than the smallest errors are."""
        return np.asarray(np.abs(some - others)[:, 0] <= applied.threshold(self._intervals.scores, ALIKE))

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """Canonical texts [n]."""
        return np.array([canonical("regression", float(f"{number:.6g}")) for number in self.numbers.tolist()])

    @property
    def confidence(self) -> None:
        """None: an interval says it."""

    @property
    def passes(self) -> Bools:
        """The truth is in the interval that is answered."""
        return self.held(INTERVAL_COVERAGE)

    @cached_property
    def errors(self) -> Floats:
        """Absolute [n]."""
        return np.abs(self.truth - self.numbers)

    @property
    def score(self) -> Score:
        """R²: the share of the squared error saved of always guessing the mean of these very rows."""
        guessed = (self.truth - self.truth.mean()) ** 2
        moved = paired_tests.Saved((guessed - self.errors**2) / _whole(guessed), "")
        return Score(moved.observed, moved.interval(), 0.0)

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """NLL of a normal distribution [n]."""
        return {"nll": _row_nll(self._intervals, self.numbers, self.truth)}

    def moved(self, before: Self, metric: str = "accuracy", rows: Any = slice(None)) -> paired_tests.Saved:
        """By NLL, or else by the squared error."""
        if metric == "nll":
            return paired_tests.Saved((before.losses["nll"] - self.losses["nll"])[rows], "NLL lower by {:.4f}")
        mine, theirs = self.errors[rows] ** 2, before.errors[rows] ** 2
        words = f"mean squared error {mine.mean():.4g} for {theirs.mean():.4g}, {{:+.1%}} saved"
        return paired_tests.Saved((theirs - mine) / _whole(theirs), words)

    def worse_than(self, before: Self) -> list[int]:
        """Rows whose error grew beyond what counts as another answer, by how much it grew."""
        grown = self.errors - before.errors
        found = np.flatnonzero(~self.alike(self.outputs, before.outputs) & (grown > 0)).tolist()
        return sorted(found, key=lambda n: -grown[n])

    @property
    def bias(self) -> Bias:
        """Of the errors with their signs, in parts of the spread that is claimed."""
        gap, p = probabilistic.mean_bias(
            (self.numbers - self.truth) / _spread(self._intervals, self.errors), self._fitted
        )
        return Bias(gap, p, f"too {'high' if gap > 0 else 'low'} by {abs(gap):.3f} of its spread")

    @property
    def scores(self) -> Sequence[float]:
        """Of intervals."""
        return self._intervals.scores

    def held(self, coverage: float) -> Bools:
        """The truth is in the interval."""
        low, high = applied.intervals(self._intervals, self.numbers, None, coverage)
        return np.asarray((low <= self.truth) & (self.truth <= high))

    def width(self, coverage: float) -> float:
        """Of an interval, in the unit of the numbers."""
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
    raw: Floats | None = None,  # noqa: ARG001 - intervals leave the numbers as they are
) -> NumberEvidence:
    """Score numbers.

    Args:
        outputs: [n, 1].
        rows: n rows with their true numbers.
        version: for the report.
        split: for the report.
        calibration: with the intervals that were fitted; a model without any gets the spread that suits these very rows.

    """
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    numbers, truth = outputs[:, 0], np.array([float(row.label) for row in rows])
    fitted = calibration or Calibration()
    claimed = fitted.intervals or IntervalCalibration()
    errors, nll = np.abs(truth - numbers), _row_nll(claimed, numbers, truth)
    report = EvaluationReport(
        model_version=version,
        split=split,
        n=len(rows),
        nll=float(nll.mean()),
        by_slice={
            name: {"n": len(own), "mae": float(errors[own].mean()), "nll": float(nll[own].mean())}
            for name, own in slices(rows, "regression").items()
        },
        measures=_measures(claimed, numbers, truth, nll),
        reliability=_reliability(claimed, numbers, truth),
    )
    return NumberEvidence(report, rows, numbers, truth, fitted)


def _measures(fitted: IntervalCalibration, numbers: Floats, truth: Floats, nll: Floats) -> dict[str, Measure]:
    """MAE, RMSE, NLL, R², Spearman's correlation; coverage and width of intervals at 90 %. With intervals over rows."""
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
    found = {
        name: _measure(value.get(name, float(nll.mean())), *np.quantile(each, [0.025, 0.975]).tolist())
        for name, each in resampled.items()
    }
    rank = value["spearman"]
    if isfinite(rank) and n > 3 and abs(rank) < 1:
        half = 1.96 * sqrt((1 + rank**2 / 2) / (n - 3))  # Bonett & Wright (2000)
        found["spearman"] = _measure(rank, tanh(atanh(rank) - half), tanh(atanh(rank) + half))
    if fitted.scores and isfinite(applied.threshold(fitted.scores, INTERVAL_COVERAGE)):
        low, high = applied.intervals(fitted, numbers, None, INTERVAL_COVERAGE)
        hits = int(((low <= truth) & (truth <= high)).sum())
        found["coverage_90"] = _measure(hits / n, *paired_tests.share_interval(hits, n), null=INTERVAL_COVERAGE)
        width = float((high - low).mean())
        found["width_90"] = _measure(width, width, width)
    return {name: measure for name, measure in found.items() if isfinite(measure.value)}


def _measure(value: float, low: float, high: float, null: float | None = None) -> Measure:
    return Measure(value=value, low=low, high=high, null=null)


def _reliability(fitted: IntervalCalibration, numbers: Floats, truth: Floats) -> list[ReliabilityBin]:
    """What intervals claim to hold, and what they hold."""
    found = []
    for claim in CLAIMS if fitted.scores else ():
        low, high = applied.intervals(fitted, numbers, None, claim)
        held = float(((low <= truth) & (truth <= high)).mean())
        found.append(ReliabilityBin(confidence=claim, accuracy=held, n=len(truth)))
    return found


def _row_nll(fitted: IntervalCalibration, numbers: Floats, truth: Floats) -> Floats:
    spread = np.full_like(numbers, _spread(fitted, np.abs(truth - numbers)))
    return intervals.row_nll(numbers, spread, truth)


def _spread(fitted: IntervalCalibration, errors: Floats) -> float:
    """The standard deviation that is claimed; what suits these rows best where none is."""
    return fitted.factor if fitted.fitted_rows else max(float(np.sqrt((errors**2).mean())), 1e-9)


def _whole(errors: Floats) -> float:
    """What shares of an error are of."""
    return max(float(errors.mean()), 1e-12)
