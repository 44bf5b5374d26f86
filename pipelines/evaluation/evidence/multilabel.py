"""Evidence for multilabel: any number of labels a row.

Turns a probability for each label, and the true labels, into `LabelsEvidence`. evaluation/evaluators.py calls `score_labels`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import conformal, thresholds
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Floats, Score, Uncalibrated, slices
from pipelines.evaluation.evidence.labels import (
    DRAWS,
    LabelMetric,
    RightOrWrong,
    all_labels,
    bias_of,
    report_of,
    widened,
)
from pipelines.metrics import paired_tests, point, probabilistic
from pipelines.metrics.paired_tests import PairedComparison
from schemas.manifests import Calibration
from schemas.reports import EvaluationReport
from schemas.targets import Task, canonical, labels_of
from serving.inference import calibration as applied


@dataclass(frozen=True)
class LabelsEvidence(RightOrWrong):
    """Evidence for multilabel; `truth` and `predicted` [n, k]. A prediction is right if it has every true label and no other.

    Two models are compared by micro F1: with many labels, even a good model seldom has all of a row's labels right.
    """

    task: ClassVar[Task] = "multilabel"
    metrics: ClassVar[tuple[str, ...]] = ("micro_f1", *get_args(LabelMetric))
    measure: ClassVar[str] = "micro F1"
    constant_baseline: ClassVar[str] = "always giving the best constant answer"

    report: EvaluationReport
    rows: Sequence[FileRow]
    labels: list[str]
    known: int
    probabilities: Floats
    truth: Bools
    predicted: Bools
    calibration: Calibration
    raw: Floats | None = None
    fold: NDArray[np.int64] | None = None  # rows of one number are judged under a map that was fitted without them

    def same_answer(self, some: Floats, others: Floats) -> Bools:
        """Return on which rows all labels are the same."""
        mine, theirs = (applied.answered(self.calibration, outputs) for outputs in (some, others))
        return np.asarray((mine == theirs).all(axis=1))

    def agreement(self, other: Self) -> tuple[int, int, str]:
        """Return the labels that both models predict, out of the mean number that one predicts.

        With one label a row this is the share of equal predictions. Whole label sets would differ too often to be informative,
        and counting labels that neither model predicts would hide differences.
        """
        mine, theirs = self.predicted[:, : self.known], other.predicted[:, : other.known]
        both, total = int((mine & theirs).sum()), int(mine.sum() + theirs.sum())
        return (both, -(-total // 2), "labels") if total else (len(self.rows), len(self.rows), "answers")

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """Return the predicted labels as canonical texts [n]."""
        predicted = [[self.labels[k] for k in np.flatnonzero(row)] for row in self.predicted]
        return np.array([canonical("multilabel", labels) for labels in predicted])

    @cached_property
    def confidence(self) -> Floats:
        """Return the probability that all labels are right, assuming independence [n]."""
        return applied.answer_confidence(self.probabilities, self.predicted)

    @cached_property
    def right(self) -> Bools:
        """Return which predictions [n] have exactly the true labels."""
        return np.asarray((self.predicted == self.truth).all(axis=1))

    @property
    def score(self) -> Score:
        """Return micro F1 with its bootstrap interval, beside that of the best constant answer: the m commonest labels."""
        n = len(self.truth)
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float64)
        drawn = thresholds.quality(self.predicted, self.truth, "micro_f1", counts)
        low, high = np.quantile(drawn, [0.025, 0.975])
        hits = np.cumsum(np.sort(self.truth.sum(axis=0))[::-1])
        constant = 2 * hits / (n * np.arange(1, len(hits) + 1) + hits[-1])
        value = float(thresholds.quality(self.predicted, self.truth, "micro_f1")[0])
        return Score(value, (float(low), float(high)), float(constant.max()))

    def _compared(self, before: Self, metric: str, rows: Any) -> PairedComparison:
        """Compare by micro F1, or as labels that exclude each other are compared."""
        if metric != "micro_f1":
            return super()._compared(before, metric, rows)
        truth, change = self.truth[rows], paired_tests.accuracy_change(before.right[rows], self.right[rows])

        def gain(counts: Floats) -> Floats:
            new, old = (thresholds.quality(each.predicted[rows], truth, metric, counts) for each in (self, before))
            return np.asarray(new - old)

        return paired_tests.ResampledGain(gain, len(truth), "micro F1 {:+.4f}", change.gained, change.lost)

    @property
    def indicators(self) -> tuple[Bools, Bools]:
        """Return the true labels and the predicted labels: [n, k], [n, k]."""
        return self.truth, self.predicted

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
        inside = np.zeros(self.outputs.shape, dtype=bool)
        fold = np.zeros(len(inside), dtype=np.int64) if self.fold is None else self.fold
        for number in np.unique(fold):
            scores = self.calibration.conformal
            if self.fold is not None and scores is not None:
                others = fold != number
                scores = conformal.fit_outer(self.outputs[others], self.truth[others, : self.known])
            inside[fold == number] = applied.outer_sets(scores, self.outputs[fold == number], coverage)
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
    fold: NDArray[np.int64] | None = None,
    refitted: Callable[[Bools], Floats] | None = None,
    answers: Bools | None = None,
) -> LabelsEvidence:
    """Score probabilities [n, k] of labels that don't exclude each other; arguments as for `score_label`.

    `answers` [n, k] are the labels answered; None: those above the calibration's thresholds.
    """
    names = all_labels(labels, rows, "multilabel", version, split)
    label_sets = [set(labels_of("multilabel", row.label)) for row in rows]
    truth = np.array([[name in given for name in names] for given in label_sets], dtype=bool)
    full = widened(probabilities, len(names))
    fitted = calibration or Calibration()
    predicted = np.zeros_like(truth)
    predicted[:, : len(labels)] = applied.answered(fitted, probabilities) if answers is None else answers
    right = (predicted == truth).all(axis=1)
    report = report_of(
        probabilistic.measure_each(full, truth, predicted, refitted=refitted),
        point.multilabel(truth, predicted)["macro_f1"],
        {"accuracy": right, "nll": probabilistic.row_nll_each(full, truth)},
        slices(rows, "multilabel"),
        reliability=probabilistic.reliability(full.ravel(), truth.ravel()),
        model_version=version,
        split=split,
        n=len(rows),
    )
    uncalibrated = None if raw is None else widened(raw, len(names))
    return LabelsEvidence(report, rows, names, len(labels), full, truth, predicted, fitted, uncalibrated, fold)
