"""Evidence for classification: one label a row.

Turns probabilities and true labels into `LabelEvidence`. evaluation/evaluators.py calls `score_label`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import conformal
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Floats, Uncalibrated, slices
from pipelines.evaluation.evidence.labels import RightOrWrong, all_labels, bias_of, report_of, widened
from pipelines.metrics import point, probabilistic
from schemas.manifests import Calibration, Conformal
from schemas.reports import Confusion, EvaluationReport
from schemas.targets import Task
from serving.inference import calibration as applied


@dataclass(frozen=True)
class LabelEvidence(RightOrWrong):
    """Evidence for classification; `truth` [n] holds the column of each true label."""

    task: ClassVar[Task] = "classification"
    measure: ClassVar[str] = "accuracy"

    report: EvaluationReport
    rows: Sequence[FileRow]
    labels: list[str]
    known: int
    probabilities: Floats
    truth: NDArray[np.int64]
    calibration: Calibration
    raw: Floats | None = None
    fold: NDArray[np.int64] | None = None  # rows of one number are judged under a map that was fitted without them

    def same_answer(self, some: Floats, others: Floats) -> Bools:
        """Return on which rows the most probable label is the same."""
        return np.asarray(some.argmax(axis=1) == others.argmax(axis=1))

    @cached_property
    def best(self) -> NDArray[np.int64]:
        """Return the column of the most probable label [n]."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """Return the name of the most probable label [n]."""
        return np.array(self.labels)[self.best]

    @cached_property
    def confidence(self) -> Floats:
        """Return the probability of the predicted label [n]."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def right(self) -> Bools:
        """Return which predictions [n] are right."""
        return np.asarray(self.best == self.truth)

    @cached_property
    def indicators(self) -> tuple[Bools, Bools]:
        """Return the true label and the predicted label as indicators: [n, k], [n, k]."""
        columns = np.arange(len(self.labels))
        return self.truth[:, None] == columns, self.best[:, None] == columns

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """Return NLL and Brier score [n]."""
        return {
            "nll": probabilistic.row_nll(self.probabilities, self.truth),
            "brier": probabilistic.row_brier(self.probabilities, self.truth),
        }

    @property
    def bias(self) -> Bias:
        """Return mean confidence minus accuracy."""
        gap, p = probabilistic.bias(self.confidence, self.right, self.calibration.fitted_rows)
        return bias_of(gap, p)

    def covered(self, coverage: float) -> Bools:
        """Return which sets contain the true label; a label that the model does not know is in none."""
        known = self.truth < self.known
        covered = np.zeros(len(self.truth), dtype=bool)
        for held, scores in self._sets(known):
            rows = np.flatnonzero(held & known)
            inside = applied.prediction_sets(scores, self.outputs[rows], coverage)
            covered[rows] = inside[np.arange(len(rows)), self.truth[rows]]
        return covered

    def _sets(self, known: Bools) -> Iterator[tuple[Bools, Conformal | None]]:
        """Yield which rows to judge with which scores: those of the other folds, or the version's own for all rows."""
        fitted = self.calibration.conformal
        if self.fold is None or fitted is None:
            yield np.ones(len(self.truth), dtype=bool), fitted
            return
        for number in np.unique(self.fold):
            others = known & (self.fold != number)
            yield self.fold == number, conformal.fit(fitted.method, self.outputs[others], self.truth[others])

    def mean_width(self, coverage: float) -> float:
        """Return the mean number of labels in a set."""
        return float(applied.prediction_sets(self.calibration.conformal, self.outputs, coverage).sum(axis=1).mean())

    @property
    def uncalibrated(self) -> Uncalibrated:
        """Return reliability, NLL and ECE before calibration."""
        raw = self.probabilities if self.raw is None else self.raw
        confidence, right = raw.max(axis=1), raw.argmax(axis=1) == self.truth
        nll = float(probabilistic.row_nll(raw, self.truth).mean())
        return Uncalibrated(probabilistic.reliability(confidence, right), nll, probabilistic.ece(confidence, right))

    def confusion(self, most: int) -> list[Confusion]:
        """Return wrong predictions by true and predicted label, the most frequent first."""
        wrong = np.flatnonzero(~self.right).tolist()
        pairs = Counter((self.rows[n].label, str(self.answers[n])) for n in wrong).most_common(most)
        return [Confusion(truth=truth, answer=answer, n=n) for (truth, answer), n in pairs]


def score_label(
    probabilities: Floats,
    labels: Sequence[str],
    rows: Sequence[FileRow],
    *,
    version: str,
    split: str,
    calibration: Calibration | None = None,
    raw: Floats | None = None,
    fold: NDArray[np.int64] | None = None,
    refitted: Callable[[NDArray[np.int64]], Floats] | None = None,
) -> LabelEvidence:
    """Score probabilities, columns in the order of `labels`. A true label that the model does not know has probability 0.

    Args:
        probabilities: [n, k], calibrated.
        labels: k names.
        rows: n rows with their true labels.
        version: for the report.
        split: for the report.
        calibration: the map that gave the probabilities, with the scores of prediction sets.
        raw: [n, k], the same before calibration.
        fold: [n], where each row's map was fitted without the rows of its number; None: on other rows.
        refitted: as for `probabilistic.measure`.

    """
    names = all_labels(labels, rows, "classification", version, split)
    index = {label: n for n, label in enumerate(names)}
    truth = np.array([index[row.label] for row in rows])
    full = widened(probabilities, len(names))
    confidence, right = full.max(axis=1), full.argmax(axis=1) == truth
    report = report_of(
        probabilistic.measure(full, truth, refitted=refitted),
        point.classification(truth, full.argmax(axis=1))["macro_f1"],
        {"accuracy": right, "nll": probabilistic.row_nll(full, truth)},
        slices(rows, "classification"),
        reliability=probabilistic.reliability(confidence, right),
        model_version=version,
        split=split,
        n=len(rows),
    )
    uncalibrated = None if raw is None else widened(raw, len(names))
    applied_map = calibration or Calibration()
    return LabelEvidence(report, rows, names, len(labels), full, truth, applied_map, uncalibrated, fold)
