"""Evidence of models that answer with one label.

Turns probabilities and true labels into `LabelEvidence`. evaluation.py calls `score_label`. It deliberately judges nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Floats, Uncalibrated, slices
from pipelines.evaluation.evidence.labels import RightOrWrong, all_labels, bias_of, report_of, widened
from pipelines.metrics import point, probabilistic
from schemas.manifests import Calibration
from schemas.reports import Confusion, EvaluationReport
from schemas.targets import Task
from serving.inference import calibration as applied


@dataclass(frozen=True)
class LabelEvidence(RightOrWrong):
    """Classification; `truth` [n] are columns."""

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

    def alike(self, some: Floats, others: Floats) -> Bools:
        """The same likeliest label."""
        return np.asarray(some.argmax(axis=1) == others.argmax(axis=1))

    @cached_property
    def best(self) -> NDArray[np.int64]:
        """The most probable label's column [n]."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """The most probable label's name [n]."""
        return np.array(self.labels)[self.best]

    @cached_property
    def confidence(self) -> Floats:
        """The probability of the answer [n]."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def right(self) -> Bools:
        """[n]."""
        return np.asarray(self.best == self.truth)

    @cached_property
    def indicators(self) -> tuple[Bools, Bools]:
        """[n, k], [n, k]."""
        columns = np.arange(len(self.labels))
        return self.truth[:, None] == columns, self.best[:, None] == columns

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """[n] each."""
        return {
            "nll": probabilistic.row_nll(self.probabilities, self.truth),
            "brier": probabilistic.row_brier(self.probabilities, self.truth),
        }

    @property
    def bias(self) -> Bias:
        """Confidence against accuracy."""
        gap, p = probabilistic.bias(self.confidence, self.right, self.calibration.fitted_rows)
        return bias_of(gap, p)

    def held(self, coverage: float) -> Bools:
        """The truth is in the set; one that is no column of the model's never is."""
        inside = applied.prediction_sets(self.calibration.conformal, self.outputs, coverage)
        known = np.flatnonzero(self.truth < self.known)
        found = np.zeros(len(self.truth), dtype=bool)
        found[known] = inside[known, self.truth[known]]
        return found

    def width(self, coverage: float) -> float:
        """Labels in a set."""
        return float(applied.prediction_sets(self.calibration.conformal, self.outputs, coverage).sum(axis=1).mean())

    @property
    def uncalibrated(self) -> Uncalibrated:
        """Before calibration."""
        raw = self.probabilities if self.raw is None else self.raw
        confidence, right = raw.max(axis=1), raw.argmax(axis=1) == self.truth
        nll = float(probabilistic.row_nll(raw, self.truth).mean())
        return Uncalibrated(probabilistic.reliability(confidence, right), nll, probabilistic.ece(confidence, right))

    def confusion(self, most: int) -> list[Confusion]:
        """Wrong answers, the most frequent first."""
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
) -> LabelEvidence:
    """Score probabilities, columns in the order of `labels`. A true label unknown to the model has probability 0.

    Args:
        probabilities: [n, k], calibrated.
        labels: k names.
        rows: n rows with their true labels.
        version: for the report.
        split: for the report.
        calibration: what made the probabilities, with the scores of prediction sets.
        raw: [n, k], the same before calibration.

    """
    names = all_labels(labels, rows, "classification", version, split)
    index = {label: n for n, label in enumerate(names)}
    truth = np.array([index[row.label] for row in rows])
    full = widened(probabilities, len(names))
    confidence, right = full.max(axis=1), full.argmax(axis=1) == truth
    report = report_of(
        probabilistic.measure(full, truth),
        point.classification(truth, full.argmax(axis=1))["macro_f1"],
        {"accuracy": right, "nll": probabilistic.row_nll(full, truth)},
        slices(rows, "classification"),
        reliability=probabilistic.reliability(confidence, right),
        model_version=version,
        split=split,
        n=len(rows),
    )
    before = None if raw is None else widened(raw, len(names))
    return LabelEvidence(report, rows, names, len(labels), full, truth, calibration or Calibration(), before)
