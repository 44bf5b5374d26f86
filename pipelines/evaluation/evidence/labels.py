"""Evidence for predictions that are right or wrong: what classification and multilabel share.

Turns true and predicted labels into scores and paired comparisons. classification.py and multilabel.py subclass
`RightOrWrong`.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Floats, OutputEvidence, Score
from pipelines.metrics import gain_tests, paired_tests
from pipelines.metrics.paired_tests import PairedComparison
from schemas.reports import EvaluationReport, LabelScore, Measure
from schemas.targets import Task, labels_of

LabelMetric = Literal["accuracy", "nll", "brier", "macro_f1", "accuracy_or_brier"]

LOSS_NAMES = {"nll": "NLL", "brier": "Brier score"}
ONE_SIDED = 0.9  # share of the most frequent label from which on the first champion is judged by macro F1
DRAWS = 500  # of its bootstrap


class RightOrWrong(OutputEvidence):
    """Evidence for predictions made of labels.

    `labels` begins with the `known` labels of the model; true labels that it does not know follow. `probabilities` [n, k] has
    a column for each.
    """

    metrics = get_args(LabelMetric)
    constant_baseline = "always predicting the most frequent label"
    region = "sets"

    labels: list[str]
    known: int
    probabilities: Floats
    raw: Floats | None  # before calibration, where known

    @property
    def outputs(self) -> Floats:
        """Return the columns of the labels that the model knows."""
        return self.probabilities[:, : self.known]

    @property
    @abstractmethod
    def right(self) -> Bools:
        """Return which predictions [n] are right."""

    @property
    @abstractmethod
    def indicators(self) -> tuple[Bools, Bools]:
        """Return which labels are true, and which are predicted: [n, k], [n, k]."""

    @property
    def passes(self) -> Bools:
        """Return the rows whose prediction is right."""
        return self.right

    @property
    def score(self) -> Score:
        """Return the accuracy beside that of the most frequent label, or macro F1 where that label leaves accuracy no room."""
        n = len(self.right)
        commonest = Counter(row.label for row in self.rows).most_common(1)[0][1] / n
        if commonest > ONE_SIDED:
            return self._macro_f1_score(commonest)
        interval = paired_tests.share_interval(int(self.right.sum()), n)
        return Score(float(self.right.mean()), interval, commonest)

    def _macro_f1_score(self, commonest: float) -> Score:
        """Return macro F1 with its bootstrap interval, beside that of the most frequent label, whose share is given."""
        n, rows = len(self.right), np.arange(len(self.right))
        names = occurring(self, rows)
        value = float(macro_f1(self, rows, names, np.ones((1, n)))[0])
        drawn = macro_f1(self, rows, names, np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS))
        low, high = np.quantile(drawn, [0.025, 0.975])
        constant = 2 * commonest / (1 + commonest) / len(names)
        return Score(value, (float(low), float(high)), constant, "macro F1")

    def _compared(self, before: Self, metric: str, rows: Any) -> PairedComparison:
        """Compare by accuracy, by macro F1 over the labels that the rows have, by a loss, or by accuracy and a loss."""
        if metric == "accuracy":
            return paired_tests.accuracy_change(before.right[rows], self.right[rows])
        if metric == "accuracy_or_brier":
            now, then = self.right[rows], before.right[rows]
            brier = paired_tests.MeanGain(
                (before.losses["brier"] - self.losses["brier"])[rows], "Brier score lower by {:.4f}"
            )
            moved = now.astype(np.float64) - then
            return gain_tests.either_gain(paired_tests.accuracy_change(then, now), moved, brier, "Brier score")
        if metric == "macro_f1":
            change = _macro_f1_change(before, self, rows)
            return paired_tests.ResampledGain(change, len(self.right[rows]), "macro F1 {:+.4f}")
        gains = before.losses[metric] - self.losses[metric]
        return paired_tests.MeanGain(gains[rows], LOSS_NAMES.get(metric, metric) + " lower by {:.4f}")

    def worse_than(self, before: Self) -> list[int]:
        """Return the rows that were right and are wrong now, the most confident first."""
        newly_wrong = np.flatnonzero(before.right & ~self.right).tolist()
        return sorted(newly_wrong, key=lambda n: -self.confidence[n])

    @property
    @abstractmethod
    def confidence(self) -> Floats:
        """Return the probability that each prediction is right [n]."""

    @property
    def scores(self) -> Sequence[float]:
        """Return the conformal scores of prediction sets."""
        return self.calibration.conformal.scores if self.calibration.conformal else ()

    def label_scores(self) -> list[LabelScore]:
        """Return recall and precision of each label; None where no row has it, or no prediction."""
        scores = []
        for label, truth, predicted in zip(self.labels, *(columns.T for columns in self.indicators), strict=True):
            hits, n, predictions = int((truth & predicted).sum()), int(truth.sum()), int(predicted.sum())
            recall, precision = hits / n if n else None, hits / predictions if predictions else None
            scores.append(LabelScore(label=label, n=n, recall=recall, precision=precision))
        return scores


def report_of(
    measures: Mapping[str, Measure],
    macro_f1: float,
    by_row: Mapping[str, NDArray[Any]],
    slices: Mapping[str, NDArray[np.int64]],
    **fields: Any,
) -> EvaluationReport:
    """Return the evaluation report of a labelling model.

    Args:
        measures: accuracy, NLL, Brier score and ECE, with more, by name.
        macro_f1: of the same rows.
        by_row: values [n] to average by slice.
        slices: row numbers by slice.
        fields: the report's other fields.

    """
    return EvaluationReport(
        accuracy=measures["accuracy"].value,
        macro_f1=macro_f1,
        nll=measures["nll"].value,
        brier=measures["brier"].value,
        ece=measures["ece"].value,
        ece_null_99=measures["ece"].null_99 or 0.0,
        by_slice={
            name: {"n": len(rows)} | {key: float(values[rows].mean()) for key, values in by_row.items()}
            for name, rows in slices.items()
        },
        measures=dict(measures),
        **fields,
    )


def all_labels(labels: Sequence[str], rows: Sequence[FileRow], task: Task, version: str, split: str) -> list[str]:
    """Return the model's labels, then the true labels that it does not know. Raise ValueError without rows."""
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    return [*labels, *sorted({label for row in rows for label in labels_of(task, row.label)} - set(labels))]


def widened(probabilities: Floats, columns: int) -> Floats:
    """Append columns of zeros for labels that the model does not know: [n, k] -> [n, columns]."""
    return np.hstack([probabilities, np.zeros((len(probabilities), columns - probabilities.shape[1]))])


def bias_of(gap: float, p: float) -> Bias:
    """Return the bias of confidence minus accuracy, with its direction in words."""
    return Bias(gap, p, f"{'over-confident' if gap > 0 else 'under-confident'} by {abs(gap):.3f}")


def occurring(model: RightOrWrong, rows: Any) -> list[str]:
    """Return the labels that these rows have."""
    return [name for name, truth in zip(model.labels, model.indicators[0][rows].T, strict=True) if truth.any()]


def macro_f1(model: RightOrWrong, rows: Any, names: Sequence[str], counts: NDArray[Any]) -> Floats:
    """Return macro F1 over the named labels, for each draw of row weights: [draws, n] to [draws]."""
    columns = [model.labels.index(name) for name in names]
    truth, predicted = (indicator[rows][:, columns] for indicator in model.indicators)
    both = counts @ (truth & predicted)
    total = counts @ truth + counts @ predicted
    return np.asarray((2 * both / np.maximum(total, 1)).mean(axis=1))


def _macro_f1_change(before: RightOrWrong, after: RightOrWrong, rows: Any) -> Callable[[Floats], Floats]:
    """Return a function from row weights [draws, n] to the change in macro F1 [draws], over the labels that the rows have."""
    names = occurring(after, rows)
    return lambda counts: macro_f1(after, rows, names, counts) - macro_f1(before, rows, names, counts)
