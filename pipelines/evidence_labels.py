"""Evidence of models that answer with labels: one of them, or several.

Turns probabilities and true labels into `Evidence`. evaluation.py calls `score_label` and `score_labels`. What both have in
common is that an answer is right or wrong. It deliberately judges nothing.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipelines import measures, metrics, paired
from pipelines.dataset.files import FileRow
from pipelines.evidence import Bias, Bools, Evidence, Floats, Score, Uncalibrated, slices
from pipelines.paired import Moved
from schemas.artifacts import Calibration, EvaluationReport, Measure
from schemas.reports import Confusion, LabelScore
from schemas.targets import Task, canonical, labels_of
from serving import calibration as applied


class RightOrWrong(Evidence):
    """Answers made of labels.

    `labels` are the model's, `known` of them, then those true labels that it does not know; `probabilities` [n, k] has a
    column for each.
    """

    guess = "always guessing the commonest"
    bounds = "sets"

    labels: list[str]
    known: int
    probabilities: Floats
    raw: Floats | None  # before calibration, where known

    @property
    def outputs(self) -> Floats:
        """The model's own columns."""
        return self.probabilities[:, : self.known]

    @property
    @abstractmethod
    def right(self) -> Bools:
        """Which answers [n] are right."""

    @property
    @abstractmethod
    def indicators(self) -> tuple[Bools, Bools]:
        """Which labels are true, and which are answered: [n, k], [n, k]."""

    @property
    def passes(self) -> Bools:
        """Right."""
        return self.right

    @property
    def score(self) -> Score:
        """The share of right answers."""
        n = len(self.right)
        commonest = Counter(row.label for row in self.rows).most_common(1)[0][1]
        interval = paired.share_interval(int(self.right.sum()), n)
        return Score(float(self.right.mean()), interval, commonest / n)

    def moved(self, before: Self, metric: str = "accuracy", rows: Any = slice(None)) -> Moved:
        """By right and wrong; macro F1 over the labels that the rows have; or by a loss."""
        if metric == "accuracy":
            return paired.change(before.right[rows], self.right[rows])
        if metric == "macro_f1":
            change = _macro_f1_change(before, self, rows)
            return paired.Resampled(change, len(self.right[rows]), "macro F1 {:+.4f}")
        saved = before.losses[metric] - self.losses[metric]
        return paired.Saved(saved[rows], metric + " lower by {:.4f}")

    def worse_than(self, before: Self) -> list[int]:
        """Right before, wrong now; the surest first."""
        found = np.flatnonzero(before.right & ~self.right).tolist()
        return sorted(found, key=lambda n: -self.confidence[n])

    @property
    @abstractmethod
    def confidence(self) -> Floats:
        """That the answer is right [n]."""

    @property
    def scores(self) -> Sequence[float]:
        """Of prediction sets."""
        return self.calibration.conformal.scores if self.calibration.conformal else ()

    def label_scores(self) -> list[LabelScore]:
        """Recall and precision of every label."""
        found = []
        for label, own, given in zip(self.labels, *(columns.T for columns in self.indicators), strict=True):
            hits, n, said = int((own & given).sum()), int(own.sum()), int(given.sum())
            recall, precision = hits / n if n else None, hits / said if said else None
            found.append(LabelScore(label=label, n=n, recall=recall, precision=precision))
        return found


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
            "nll": measures.row_nll(self.probabilities, self.truth),
            "brier": measures.row_brier(self.probabilities, self.truth),
        }

    @property
    def bias(self) -> Bias:
        """Confidence against accuracy."""
        gap, p = measures.bias(self.confidence, self.right, self.calibration.fitted_rows)
        return _bias(gap, p)

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
        nll = float(measures.row_nll(raw, self.truth).mean())
        return Uncalibrated(measures.reliability(confidence, right), nll, measures.ece(confidence, right))

    def confusion(self, most: int) -> list[Confusion]:
        """Wrong answers, the most frequent first."""
        wrong = np.flatnonzero(~self.right).tolist()
        pairs = Counter((self.rows[n].label, str(self.answers[n])) for n in wrong).most_common(most)
        return [Confusion(truth=truth, answer=answer, n=n) for (truth, answer), n in pairs]


@dataclass(frozen=True)
class LabelsEvidence(RightOrWrong):
    """Multilabel; `truth` [n, k] are true or not. An answer is right if it has every true label and no other."""

    task: ClassVar[Task] = "multilabel"
    measure: ClassVar[str] = "subset accuracy"

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
    def indicators(self) -> tuple[Bools, Bools]:
        """[n, k], [n, k]."""
        return self.truth, self.probabilities > 0.5

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """Summed over labels, [n] each."""
        return {
            "nll": measures.row_nll_each(self.probabilities, self.truth),
            "brier": ((self.probabilities - self.truth) ** 2).sum(axis=1),
        }

    @property
    def bias(self) -> Bias:
        """Probabilities against truth, of all labels together; labels of one row may depend on each other."""
        gap, p = measures.mean_bias((self.probabilities - self.truth).mean(axis=1), self.calibration.fitted_rows)
        return _bias(gap, p)

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
        nll = float(measures.row_nll_each(raw, self.truth).mean())
        return Uncalibrated(measures.reliability(said, true), nll, measures.ece(said, true))


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
    names = _all_labels(labels, rows, "classification", version, split)
    index = {label: n for n, label in enumerate(names)}
    truth = np.array([index[row.label] for row in rows])
    full = _widened(probabilities, len(names))
    confidence, right = full.max(axis=1), full.argmax(axis=1) == truth
    report = _report(
        measures.measure(full, truth),
        metrics.classification(truth, full.argmax(axis=1))["macro_f1"],
        {"accuracy": right, "nll": measures.row_nll(full, truth)},
        slices(rows, "classification"),
        reliability=measures.reliability(confidence, right),
        model_version=version,
        split=split,
        n=len(rows),
    )
    before = None if raw is None else _widened(raw, len(names))
    return LabelEvidence(report, rows, names, len(labels), full, truth, calibration or Calibration(), before)


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
    names = _all_labels(labels, rows, "multilabel", version, split)
    own = [set(labels_of("multilabel", row.label)) for row in rows]
    truth = np.array([[name in given for name in names] for given in own], dtype=bool)
    full = _widened(probabilities, len(names))
    right = ((full > 0.5) == truth).all(axis=1)
    report = _report(
        measures.measure_each(full, truth),
        metrics.multilabel(truth, full > 0.5)["macro_f1"],
        {"accuracy": right, "nll": measures.row_nll_each(full, truth)},
        slices(rows, "multilabel"),
        reliability=measures.reliability(full.ravel(), truth.ravel()),
        model_version=version,
        split=split,
        n=len(rows),
    )
    before = None if raw is None else _widened(raw, len(names))
    return LabelsEvidence(report, rows, names, len(labels), full, truth, calibration or Calibration(), before)


def _report(
    found: Mapping[str, Measure],
    macro_f1: float,
    by_row: Mapping[str, NDArray[Any]],
    own: Mapping[str, NDArray[np.int64]],
    **fields: Any,
) -> EvaluationReport:
    return EvaluationReport(
        accuracy=found["accuracy"].value,
        macro_f1=macro_f1,
        nll=found["nll"].value,
        brier=found["brier"].value,
        ece=found["ece"].value,
        ece_null_99=found["ece"].null_99 or 0.0,
        by_slice={
            name: {"n": len(rows)} | {key: float(values[rows].mean()) for key, values in by_row.items()}
            for name, rows in own.items()
        },
        measures=dict(found),
        **fields,
    )


def _all_labels(labels: Sequence[str], rows: Sequence[FileRow], task: Task, version: str, split: str) -> list[str]:
    """The model's labels, then true ones that it does not know."""
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    return [*labels, *sorted({label for row in rows for label in labels_of(task, row.label)} - set(labels))]


def _widened(probabilities: Floats, columns: int) -> Floats:
    return np.hstack([probabilities, np.zeros((len(probabilities), columns - probabilities.shape[1]))])


def _bias(gap: float, p: float) -> Bias:
    return Bias(gap, p, f"{'over-confident' if gap > 0 else 'timid'} by {abs(gap):.3f}")


def _macro_f1_change(before: RightOrWrong, after: RightOrWrong, rows: Any) -> Callable[[Floats], Floats]:
    """How often each row counts [draws, n] -> change in F1, averaged over the labels that the rows have."""
    names = [name for name, own in zip(after.labels, after.indicators[0][rows].T, strict=True) if own.any()]

    def macro_f1(model: RightOrWrong, counts: Floats) -> Floats:
        columns = [model.labels.index(name) for name in names]
        truth, given = (found[rows][:, columns] for found in model.indicators)
        both = counts @ (truth & given)
        total = counts @ truth + counts @ given
        return np.asarray((2 * both / np.maximum(total, 1)).mean(axis=1))

    return lambda counts: macro_f1(after, counts) - macro_f1(before, counts)
