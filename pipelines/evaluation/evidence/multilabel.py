"""Evidence for multilabel: any number of labels a row.

Turns a probability for each label, and the true labels, into `LabelsEvidence`. evaluation/evaluators.py calls `score_labels`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Floats, Score, Uncalibrated, slices
from pipelines.evaluation.evidence.labels import RightOrWrong, all_labels, bias_of, report_of, widened
from pipelines.metrics import paired_tests, point, probabilistic
from schemas.manifests import Calibration
from schemas.reports import EvaluationReport
from schemas.targets import Task, canonical, labels_of
from serving.inference import calibration as applied


@dataclass(frozen=True)
class LabelsEvidence(RightOrWrong):
    """Evidence for multilabel; `truth` [n, k]. A prediction is right if it has every true label and no other."""

    task: ClassVar[Task] = "multilabel"
    measure: ClassVar[str] = "subset accuracy"
    constant_baseline: ClassVar[str] = "always predicting each label's frequency"

    report: EvaluationReport
    rows: Sequence[FileRow]
    labels: list[str]
    known: int
    probabilities: Floats
    truth: Bools
    calibration: Calibration
    raw: Floats | None = None

    def same_answer(self, some: Floats, others: Floats) -> Bools:
        """Return on which rows all labels are the same."""
        return np.asarray(((some > 0.5) == (others > 0.5)).all(axis=1))

    def agreement(self, other: Self) -> tuple[int, int, str]:
        """Return the labels that both models predict, out of the mean number that one predicts.

        With one label a row this is the share of equal predictions. Whole label sets would differ too often to be informative,
        and counting labels that neither model predicts would hide differences.
        """
        mine, theirs = self.outputs > 0.5, other.outputs > 0.5
        both, total = int((mine & theirs).sum()), int(mine.sum() + theirs.sum())
        return (both, -(-total // 2), "labels") if total else (len(self.rows), len(self.rows), "answers")

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """Return the labels with probability above 0.5, as canonical texts [n]."""
        predicted = [[self.labels[k] for k in np.flatnonzero(row)] for row in self.probabilities > 0.5]
        return np.array([canonical("multilabel", labels) for labels in predicted])

    @cached_property
    def confidence(self) -> Floats:
        """Return the probability that all labels are right, assuming independence [n]."""
        return np.asarray(np.maximum(self.probabilities, 1 - self.probabilities).prod(axis=1))

    @cached_property
    def right(self) -> Bools:
        """Return which predictions [n] have exactly the true labels."""
        return np.asarray(((self.probabilities > 0.5) == self.truth).all(axis=1))

    @property
    def score(self) -> Score:
        """Return the reduction of NLL against each label's frequency in these rows, as a share (McFadden 1974).

        Not subset accuracy: with many labels a good first model seldom has all of them right.
        """
        common = np.broadcast_to(self.truth.mean(axis=0), self.truth.shape)
        constant = probabilistic.row_nll_each(common, self.truth)
        gains = (constant - self.losses["nll"]) / max(float(constant.mean()), 1e-9)
        return Score(float(gains.mean()), paired_tests.mean_interval(gains), 0.0, "share of NLL saved")

    @property
    def indicators(self) -> tuple[Bools, Bools]:
        """Return the true labels and the predicted labels: [n, k], [n, k]."""
        return self.truth, self.probabilities > 0.5

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """Return NLL and Brier score, summed over labels [n]."""
        return {
            "nll": probabilistic.row_nll_each(self.probabilities, self.truth),
            "brier": ((self.probabilities - self.truth) ** 2).sum(axis=1),
        }

    @property
    def bias(self) -> Bias:
        """Return the mean of probability minus truth over all labels; the p-value treats each row as one draw."""
        gap, p = probabilistic.mean_bias((self.probabilities - self.truth).mean(axis=1), self.calibration.fitted_rows)
        return bias_of(gap, p)

    def covered(self, coverage: float) -> Bools:
        """Return which sets contain every true label."""
        inside = applied.outer_sets(self.calibration.conformal, self.outputs, coverage)
        missed = (self.truth[:, : self.known] & ~inside).any(axis=1) | self.truth[:, self.known :].any(axis=1)
        return np.asarray(~missed)

    def mean_width(self, coverage: float) -> float:
        """Return the mean number of labels in a set."""
        return float(applied.outer_sets(self.calibration.conformal, self.outputs, coverage).sum(axis=1).mean())

    @property
    def uncalibrated(self) -> Uncalibrated:
        """Return reliability, NLL and ECE before calibration, over all labels."""
        raw = self.probabilities if self.raw is None else self.raw
        flat, truth = raw.ravel(), self.truth.ravel()
        nll = float(probabilistic.row_nll_each(raw, self.truth).mean())
        return Uncalibrated(probabilistic.reliability(flat, truth), nll, probabilistic.ece(flat, truth))


def score_labels(
    probabilities: Floats,
    labels: Sequence[str],
    rows: Sequence[FileRow],
    *,
    version: str,
    split: str,
    calibration: Calibration | None = None,
    raw: Floats | None = None,
) -> LabelsEvidence:
    """Score probabilities [n, k] of labels that don't exclude each other; arguments as for `score_label`."""
    names = all_labels(labels, rows, "multilabel", version, split)
    label_sets = [set(labels_of("multilabel", row.label)) for row in rows]
    truth = np.array([[name in given for name in names] for given in label_sets], dtype=bool)
    full = widened(probabilities, len(names))
    right = ((full > 0.5) == truth).all(axis=1)
    report = report_of(
        probabilistic.measure_each(full, truth),
        point.multilabel(truth, full > 0.5)["macro_f1"],
        {"accuracy": right, "nll": probabilistic.row_nll_each(full, truth)},
        slices(rows, "multilabel"),
        reliability=probabilistic.reliability(full.ravel(), truth.ravel()),
        model_version=version,
        split=split,
        n=len(rows),
    )
    uncalibrated = None if raw is None else widened(raw, len(names))
    return LabelsEvidence(report, rows, names, len(labels), full, truth, calibration or Calibration(), uncalibrated)
