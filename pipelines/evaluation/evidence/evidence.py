"""Evidence: what one model says of the rows of a split, and how that compares with the truth, for every task alike.

What the gates, the report and compression may ask of a model's answers. evaluation/evidence/classification.py and its
neighbours make it by task, gates compare two of them. It deliberately judges nothing.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.files import FileRow
from pipelines.metrics.paired_tests import Moved
from schemas.manifests import Calibration
from schemas.reports import Confusion, EvaluationReport, LabelScore, ReliabilityBin
from schemas.targets import Task, labels_of

LEAST_SLICE = 20

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """One number for all rows, up is better, and what always guessing the same would get; `name` if it is not `measure`."""

    value: float
    interval: tuple[float, float]
    guessing: float
    name: str | None = None


@dataclass(frozen=True)
class Bias:
    """How far a model is off on average, the p of that being chance, and which way."""

    gap: float
    p: float
    said: str


@dataclass(frozen=True)
class Uncalibrated:
    """What the same answers are before calibration."""

    reliability: list[ReliabilityBin] = field(default_factory=list)
    nll: float | None = None
    ece: float | None = None


class Evidence(ABC):
    """Of rows [n], in their order."""

    task: ClassVar[Task]
    measure: ClassVar[str]  # what `score` and `moved` are about
    cheap: ClassVar[str] = (
        "a linear probe on the same training rows"  # what a round has to be worth its training against
    )
    guess: ClassVar[str]  # what `score.guessing` is about
    bounds: ClassVar[str]  # what holds the truth with a promised probability

    report: EvaluationReport
    rows: Sequence[FileRow]
    calibration: Calibration

    # --- what was answered ---

    @property
    @abstractmethod
    def answers(self) -> NDArray[np.str_]:
        """Canonical texts [n]."""

    @property
    @abstractmethod
    def confidence(self) -> Floats | None:
        """Of each answer [n], where there is such a thing."""

    @property
    @abstractmethod
    def passes(self) -> Bools:
        """Which rows [n] are as right as a row can be that has to be right."""

    # --- how good that is ---

    @property
    @abstractmethod
    def score(self) -> Score:
        """On all rows."""

    @property
    @abstractmethod
    def losses(self) -> Mapping[str, Floats]:
        """Proper losses of each row, by name: what honest models compete by."""

    @abstractmethod
    def moved(self, before: Self, metric: str = "accuracy", rows: Any = slice(None)) -> Moved:
        """What moved from another model to this one, on some of the rows; for `metric` see the policy's superiority."""

    @abstractmethod
    def worse_than(self, before: Self) -> list[int]:
        """Rows whose answers a reviewer would miss, the most striking first."""

    # --- how honest it is ---

    @property
    @abstractmethod
    def bias(self) -> Bias | None:
        """On average over the rows; None without claims."""

    @property
    @abstractmethod
    def scores(self) -> Sequence[float]:
        """Conformal scores that sets or intervals are cut from, ascending; empty: none were fitted."""

    @abstractmethod
    def held(self, coverage: float) -> Bools:
        """Which rows' [n] sets or intervals hold the truth."""

    @abstractmethod
    def width(self, coverage: float) -> float:
        """Mean number of labels in a set, or mean width of an interval."""

    # --- for the report ---

    @property
    def uncalibrated(self) -> Uncalibrated:
        """Before calibration, where that is known."""
        return Uncalibrated()

    def confusion(self, most: int) -> list[Confusion]:  # noqa: ARG002 - where one label is mistaken for another
        """Wrong answers, the most frequent first."""
        return []

    def label_scores(self) -> list[LabelScore]:
        """Recall and precision by label."""
        return []


class OutputEvidence(Evidence):
    """Of a model that answers every text with k numbers."""

    @property
    @abstractmethod
    def outputs(self) -> Floats:
        """The model's calibrated outputs [n, k]."""

    @abstractmethod
    def alike(self, some: Floats, others: Floats) -> Bools:
        """On which rows two outputs [m, k] of this model are the same answer [m]."""

    def agreement(self, other: Self) -> tuple[int, int, str]:
        """How many of how many are another model's too, on the same rows, and what was counted."""
        return int(self.alike(self.outputs, other.outputs).sum()), len(self.rows), "answers"


def slices(rows: Sequence[FileRow], task: Task) -> dict[str, NDArray[np.int64]]:
    """Rows' numbers by metadata value ("channel=ios") and by true label ("label=refund"), wherever 20 rows share one."""
    members: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        named = [*row.metadata.items(), *(("label", label) for label in labels_of(task, row.label))]
        for key, value in dict.fromkeys(named):
            members[f"{key}={value}"].append(n)
    return {name: np.array(found) for name, found in sorted(members.items()) if len(found) >= LEAST_SLICE}
