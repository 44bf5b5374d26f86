"""Evidence of models whose answers are right or wrong: what classification and multilabel have in common.

Turns labels, true and answered, into what gates compare. evaluation/evidence/classification.py and
evaluation/evidence/multilabel.py say the rest. It deliberately judges nothing.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Floats, OutputEvidence, Score
from pipelines.metrics import paired_tests
from pipelines.metrics.paired_tests import Moved
from schemas.reports import EvaluationReport, LabelScore, Measure
from schemas.targets import Task, labels_of


class RightOrWrong(OutputEvidence):
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
        interval = paired_tests.share_interval(int(self.right.sum()), n)
        return Score(float(self.right.mean()), interval, commonest / n)

    def moved(self, before: Self, metric: str = "accuracy", rows: Any = slice(None)) -> Moved:
        """By right and wrong; macro F1 over the labels that the rows have; or by a loss."""
        if metric == "accuracy":
            return paired_tests.change(before.right[rows], self.right[rows])
        if metric == "macro_f1":
            change = _macro_f1_change(before, self, rows)
            return paired_tests.Resampled(change, len(self.right[rows]), "macro F1 {:+.4f}")
        saved = before.losses[metric] - self.losses[metric]
        return paired_tests.Saved(saved[rows], metric + " lower by {:.4f}")

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


def report_of(
    found: Mapping[str, Measure],
    macro_f1: float,
    by_row: Mapping[str, NDArray[Any]],
    own: Mapping[str, NDArray[np.int64]],
    **fields: Any,
) -> EvaluationReport:
    """The report.

    Args:
        found: measures, by name.
        macro_f1: of the same rows.
        by_row: what is averaged by slice, [n] each.
        own: slices, with their rows.
        fields: what else a report holds.

    """
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


def all_labels(labels: Sequence[str], rows: Sequence[FileRow], task: Task, version: str, split: str) -> list[str]:
    """The model's labels, then true ones that it does not know."""
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    return [*labels, *sorted({label for row in rows for label in labels_of(task, row.label)} - set(labels))]


def widened(probabilities: Floats, columns: int) -> Floats:
    """With columns of zeros for the labels that the model does not know."""
    return np.hstack([probabilities, np.zeros((len(probabilities), columns - probabilities.shape[1]))])


def bias_of(gap: float, p: float) -> Bias:
    """Confidence minus accuracy, in words."""
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
