"""Evidence: the interface to one model's predictions on the rows of a split, the same for every task.

Turns predictions and true labels into scores, losses and paired comparisons. classification.py, multilabel.py, regression.py and
generation.py implement it; the gates, the report and compression read it. Thresholds are in gates/policy.py.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.files import FileRow
from pipelines.metrics.paired_tests import PairedComparison
from schemas.manifests import Calibration
from schemas.reports import Confusion, EvaluationReport, LabelScore, ReliabilityBin
from schemas.targets import Task, labels_of

MIN_SLICE_ROWS = 20

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class UnknownMetric(ValueError):
    """Raised for a metric that the task's evidence does not have."""


@dataclass(frozen=True)
class Score:
    """One number for all rows, higher is better, beside that of a constant prediction; `name` if it is not `measure`."""

    value: float
    interval: tuple[float, float]
    constant_baseline: float
    name: str | None = None


@dataclass(frozen=True)
class Bias:
    """Mean error of a model's claims, the p-value under no bias, and its direction in words."""

    gap: float
    p: float
    direction: str


@dataclass(frozen=True)
class Uncalibrated:
    """Measures of the same predictions before calibration."""

    reliability: list[ReliabilityBin] = field(default_factory=list)
    nll: float | None = None
    ece: float | None = None


class Evidence(ABC):
    """Predictions of one model on rows [n], in the order of the rows."""

    task: ClassVar[Task]
    metrics: ClassVar[tuple[str, ...]]  # what two models can be compared by; the first is the task's main metric
    measure: ClassVar[str]  # the main metric's name in sentences and reports
    baseline: ClassVar[str] = "a linear probe on the same training rows"  # the method that training has to match
    copying_competes: ClassVar[bool] = False  # whether baselines could serve without any training
    constant_baseline: ClassVar[str]  # the prediction behind `score.constant_baseline`
    region: ClassVar[str]  # what covers the truth with a promised probability: sets or intervals

    report: EvaluationReport
    rows: Sequence[FileRow]
    calibration: Calibration

    # --- predictions ---

    @property
    @abstractmethod
    def answers(self) -> NDArray[np.str_]:
        """Return the predictions [n] as canonical texts."""

    @property
    @abstractmethod
    def confidence(self) -> Floats | None:
        """Return the confidence of each prediction [n]; None if the model gives none."""

    @property
    @abstractmethod
    def passes(self) -> Bools:
        """Return which rows [n] satisfy the must-pass gate."""

    # --- quality ---

    @property
    @abstractmethod
    def score(self) -> Score:
        """Return the score on all rows."""

    @property
    @abstractmethod
    def losses(self) -> Mapping[str, Floats]:
        """Return proper losses of each row [n], by name."""

    def compared_with(self, before: Self, metric: str | None = None, rows: Any = slice(None)) -> PairedComparison:
        """Compare another model with this one on the same rows.

        Args:
            before: evidence of the other model, on the same rows.
            metric: one of `metrics`; None: the task's main metric.
            rows: an index of the rows to compare on; all by default.

        Raises UnknownMetric for a metric that the task does not have.

        """
        metric = self.metrics[0] if metric is None else metric
        if metric not in self.metrics:
            raise UnknownMetric(
                f"metric = {metric!r}: {self.task} is compared by one of {', '.join(map(repr, self.metrics))}"
            )
        return self._compared(before, metric, rows)

    @abstractmethod
    def _compared(self, before: Self, metric: str, rows: Any) -> PairedComparison:
        """Compare by a metric that is one of `metrics`."""

    @abstractmethod
    def worse_than(self, before: Self) -> list[int]:
        """Return the rows whose prediction got clearly worse, the worst first."""

    # --- calibration ---

    @property
    @abstractmethod
    def bias(self) -> Bias | None:
        """Return the mean bias over the rows; None if the model claims no confidence or spread."""

    @property
    @abstractmethod
    def scores(self) -> Sequence[float]:
        """Return the conformal scores behind sets or intervals, ascending; empty if none were fitted."""

    @abstractmethod
    def covered(self, coverage: float) -> Bools:
        """Return which rows' [n] sets or intervals at this coverage contain the truth."""

    @abstractmethod
    def mean_width(self, coverage: float) -> float:
        """Return the mean number of labels in a set, or the mean width of an interval."""

    # --- for the report ---

    @property
    def uncalibrated(self) -> Uncalibrated:
        """Return measures of the predictions before calibration, where these are known."""
        return Uncalibrated()

    def confusion(self, most: int) -> list[Confusion]:  # noqa: ARG002 - only classification confuses labels
        """Return wrong predictions by true and predicted label, the most frequent first."""
        return []

    def label_scores(self) -> list[LabelScore]:
        """Return recall and precision of each label."""
        return []


class OutputEvidence(Evidence):
    """Evidence of a model that gives k numbers for every text."""

    @property
    @abstractmethod
    def outputs(self) -> Floats:
        """Return the model's calibrated outputs [n, k]."""

    @abstractmethod
    def same_answer(self, some: Floats, others: Floats) -> Bools:
        """Return on which rows two outputs [m, k] of this model are the same prediction [m]."""

    def agreement(self, other: Self) -> tuple[int, int, str]:
        """Return how many predictions two models share, out of how many, and what was counted."""
        return int(self.same_answer(self.outputs, other.outputs).sum()), len(self.rows), "answers"


def slices(rows: Sequence[FileRow], task: Task) -> dict[str, NDArray[np.int64]]:
    """Return row numbers by metadata value ("channel=ios") and by true label ("label=refund").

    A slice needs MIN_SLICE_ROWS rows.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        named = [*row.metadata.items(), *(("label", label) for label in labels_of(task, row.label))]
        for key, value in dict.fromkeys(named):
            members[f"{key}={value}"].append(n)
    return {name: np.array(numbers) for name, numbers in sorted(members.items()) if len(numbers) >= MIN_SLICE_ROWS}
