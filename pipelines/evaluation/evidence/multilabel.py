"""Evidence of models that answer with several labels, or none.

Turns a probability for each label, and the true ones, into `LabelsEvidence`. evaluation.py calls `score_labels`. An answer is
right if all of it is. It deliberately judges nothing.
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
    """Multilabel; `truth` [n, k] are true or not. An answer is right if it has every true label and no other."""

    task: ClassVar[Task] = "multilabel"
    measure: ClassVar[str] = "subset accuracy"
    guess: ClassVar[str] = "always saying how common each label is"

    report: EvaluationReport
    rows: Sequence[FileRow]
    labels: list[str]
    known: int
    probabilities: Floats
    truth: Bools
    calibration: Calibration
    raw: Floats | None = None

    def alike(self, some: Floats, others: Floats) -> Bools:
        """The same labels."""
        return np.asarray(((some > 0.5) == (others > 0.5)).all(axis=1))

    def agreement(self, other: Self) -> tuple[int, int, str]:
        """Of the labels that a model says on average, those that both say: with one label a row, the share of equal answers.

        Whole answers with many labels differ by one of them too often to tell anything; labels that neither says would hide it.
        """
        mine, theirs = self.outputs > 0.5, other.outputs > 0.5
        both, said = int((mine & theirs).sum()), int(mine.sum() + theirs.sum())
        return (both, -(-said // 2), "labels") if said else (len(self.rows), len(self.rows), "answers")

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """Labels likelier than not, as canonical texts [n]."""
        said = [[self.labels[k] for k in np.flatnonzero(row)] for row in self.probabilities > 0.5]
        return np.array([canonical("multilabel", labels) for labels in said])

    @cached_property
    def confidence(self) -> Floats:
        """That all labels are right, were they independent [n]."""
        return np.asarray(np.maximum(self.probabilities, 1 - self.probabilities).prod(axis=1))

    @cached_property
    def right(self) -> Bools:
        """[n]."""
        return np.asarray(((self.probabilities > 0.5) == self.truth).all(axis=1))

    @property
    def score(self) -> Score:
        """The share of the NLL saved of saying how common each label is in these very rows (McFadden 1974).

        Not subset accuracy: with many labels a good first model is seldom right about all of them.
        """
        common = np.broadcast_to(self.truth.mean(axis=0), self.truth.shape)
        guessed = probabilistic.row_nll_each(common, self.truth)
        moved = paired_tests.Saved((guessed - self.losses["nll"]) / max(float(guessed.mean()), 1e-9), "")
        return Score(moved.observed, moved.interval(), 0.0, "share of NLL saved")

    @property
    def indicators(self) -> tuple[Bools, Bools]:
        """[n, k], [n, k]."""
        return self.truth, self.probabilities > 0.5

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """Summed over labels, [n] each."""
        return {
            "nll": probabilistic.row_nll_each(self.probabilities, self.truth),
            "brier": ((self.probabilities - self.truth) ** 2).sum(axis=1),
        }

    @property
    def bias(self) -> Bias:
        """Probabilities against truth, of all labels together; labels of one row may depend on each other."""
        gap, p = probabilistic.mean_bias((self.probabilities - self.truth).mean(axis=1), self.calibration.fitted_rows)
        return bias_of(gap, p)

    def held(self, coverage: float) -> Bools:
        """Every true label is in the set."""
        inside = applied.outer_sets(self.calibration.conformal, self.outputs, coverage)
        missed = (self.truth[:, : self.known] & ~inside).any(axis=1) | self.truth[:, self.known :].any(axis=1)
        return np.asarray(~missed)

    def width(self, coverage: float) -> float:
        """Labels in a set."""
        return float(applied.outer_sets(self.calibration.conformal, self.outputs, coverage).sum(axis=1).mean())

    @property
    def uncalibrated(self) -> Uncalibrated:
        """Before calibration, of all labels together."""
        raw = self.probabilities if self.raw is None else self.raw
        said, true = raw.ravel(), self.truth.ravel()
        nll = float(probabilistic.row_nll_each(raw, self.truth).mean())
        return Uncalibrated(probabilistic.reliability(said, true), nll, probabilistic.ece(said, true))


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
    """The same where several labels, or none, can be true of a row."""
    names = all_labels(labels, rows, "multilabel", version, split)
    own = [set(labels_of("multilabel", row.label)) for row in rows]
    truth = np.array([[name in given for name in names] for given in own], dtype=bool)
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
    before = None if raw is None else widened(raw, len(names))
    return LabelsEvidence(report, rows, names, len(labels), full, truth, calibration or Calibration(), before)
