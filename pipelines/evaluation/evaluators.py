"""Evaluation: by task, how an artefact is calibrated on fair rows, and scored on others.

`evaluator_for` turns a task's name into what the round asks of it between training and the verdict. candidates.py
calibrates with it, gates/evidence_and_facts.py and gates/compressed.py score. Each task is one value in EVALUATORS; models
that answer with a row of numbers share `OutputEvaluator`, what writes is evaluation/text_evaluator.py's. It deliberately
judges nothing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import intervals, maps
from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow
from pipelines.evaluation import robustness
from pipelines.evaluation.evidence.classification import score_label
from pipelines.evaluation.evidence.evidence import Evidence, Floats, OutputEvidence
from pipelines.evaluation.evidence.multilabel import score_labels
from pipelines.evaluation.evidence.regression import score_number
from pipelines.evaluation.text_evaluator import TextEvaluator
from pipelines.models.encoder import Encoder
from pipelines.training.tasks.choose import task_for
from pipelines.training.tasks.encoder_task import EncoderTask
from pipelines.training.trainer import probe_outputs
from schemas.manifests import Calibration, Golden
from schemas.reports import Robustness
from schemas.settings import TrainingSettings
from schemas.targets import Task, labels_of
from serving.inference.calibration import GOLDEN_COVERAGE
from serving.inference.encoder_runtime import Runtime
from serving.inference.outputs import BY_TASK

Sets = Literal["lac", "aps"]


class Evaluator(Protocol):
    """What a round asks of a task between training and the verdict; a runtime is what `open_version` gives of it."""

    def calibrate(self, runtime: Any, rows: Sequence[FileRow], sets: Sets) -> Calibration:
        """Fit on fair rows that do not judge; the artefact itself is asked, whatever it was calibrated by before."""

    def golden(self, runtime: Any, fitted: Calibration, texts: Sequence[str], tolerance: float) -> Golden:
        """What the artefact answers to these texts under a calibration, for every later load to be held against."""

    def sample(self, rows: Sequence[FileRow]) -> Sequence[FileRow]:
        """The rows that judge, where all of them would take too long."""

    def evaluate(self, runtime: Any, rows: Sequence[FileRow], *, split: str) -> Evidence:
        """Score the artefact that would serve."""

    def edit_flips(self, runtime: Any, evidence: Any, rows: NDArray[np.int64]) -> dict[str, Robustness]:
        """Kind of edit -> how many answers to these rows of its evidence it changes."""

    def score_baseline(
        self, base: Any, dataset: Dataset, rows: Sequence[FileRow], settings: TrainingSettings
    ) -> Evidence:
        """Score the cheapest method that learns from the dataset."""


@dataclass(frozen=True)
class OutputEvaluator:
    """A task whose models answer every text with k numbers.

    `fit` turns logits [n, k] and the rows' targets into a calibration, `score` turns calibrated outputs into evidence;
    `relative`: golden outputs are compared in parts of the largest of them, not as they are.
    """

    name: Task
    fit: Callable[[Floats, Sequence[str], Sequence[str], Sets], Calibration]
    score: Callable[..., OutputEvidence]
    relative: bool = False

    def calibrate(self, runtime: Runtime, rows: Sequence[FileRow], sets: Sets) -> Calibration:
        """On the rows whose labels the model knows."""
        known = set(runtime.labels)
        own = [row for row in rows if known.issuperset(labels_of(self.name, row.label))]
        if not own:
            return Calibration()
        return self.fit(runtime.logits([row.text for row in own]), [row.label for row in own], runtime.labels, sets)

    def golden(self, runtime: Runtime, fitted: Calibration, texts: Sequence[str], tolerance: float) -> Golden:
        """Outputs, and the sets at 90 %."""
        said = BY_TASK[self.name](runtime.labels, fitted)
        outputs = said.apply(runtime.logits(texts))
        return Golden(
            texts=list(texts),
            probabilities=outputs.tolist(),
            sets=[np.flatnonzero(row).tolist() for row in said.sets(outputs, GOLDEN_COVERAGE)],
            tolerance=tolerance * (float(np.abs(outputs).max()) if self.relative else 1.0),
        )

    def sample(self, rows: Sequence[FileRow]) -> Sequence[FileRow]:
        """All."""
        return rows

    def evaluate(self, runtime: Runtime, rows: Sequence[FileRow], *, split: str) -> OutputEvidence:
        """Calibrated, and for the report also as it is before."""
        logits = runtime.logits([row.text for row in rows])
        return self.score(
            runtime.outputs.apply(logits),
            runtime.labels,
            rows,
            version=runtime.version,
            split=split,
            calibration=runtime.manifest.calibration,
            raw=self._uncalibrated(runtime.labels, logits),
        )

    def edit_flips(self, runtime: Runtime, evidence: OutputEvidence, rows: NDArray[np.int64]) -> dict[str, Robustness]:
        """Held against the outputs of the texts as they are."""
        texts = [evidence.rows[n].text for n in rows.tolist()]
        return robustness.count_flips(runtime, texts, evidence.outputs[rows], evidence.same_answer)

    def score_baseline(
        self, encoder: Encoder, dataset: Dataset, rows: Sequence[FileRow], settings: TrainingSettings
    ) -> OutputEvidence:
        """The probe on frozen embeddings that training started from."""
        used, labels = [*dataset.train, *dataset.validation], dataset.labels
        task = task_for(self.name, labels, used)
        assert isinstance(task, EncoderTask)
        found = probe_outputs(task, encoder, used, [row.text for row in rows], settings)
        return self.score(self._uncalibrated(labels, found), labels, rows, version="probe", split="reference")

    def _uncalibrated(self, labels: Sequence[str], logits: NDArray[np.float64]) -> Floats:
        return BY_TASK[self.name](labels, Calibration()).apply(logits)


def evaluate(runtime: Runtime, rows: Sequence[FileRow], *, split: str) -> OutputEvidence:
    """Score an artefact that answers with numbers, by its own task."""
    return OUTPUT_EVALUATORS[runtime.manifest.task].evaluate(runtime, rows, split=split)


def evaluation_threads(settings: TrainingSettings) -> int:
    """Return the threads of ONNX Runtime, or torch, for evaluation: as many as training may use."""
    return settings.threads or os.cpu_count() or 1


def evaluator_for(name: str) -> Evaluator:
    """The task of that name; an artefact of another is not made, nor loaded."""
    return EVALUATORS[name]


def _fit_label(logits: Floats, targets: Sequence[str], labels: Sequence[str], sets: Sets) -> Calibration:
    index = {label: n for n, label in enumerate(labels)}
    return maps.fit(logits, np.array([index[target] for target in targets]), sets)


def _fit_labels(logits: Floats, targets: Sequence[str], labels: Sequence[str], _sets: Sets) -> Calibration:
    own = [set(labels_of("multilabel", target)) for target in targets]
    return maps.fit_each(logits, np.array([[label in given for label in labels] for given in own]))


def _fit_number(logits: Floats, targets: Sequence[str], _labels: Sequence[str], _sets: Sets) -> Calibration:
    fitted = intervals.fit(logits[:, 0], None, np.array([float(target) for target in targets]))
    return Calibration(fitted_rows=fitted.fitted_rows, intervals=fitted)


OUTPUT_EVALUATORS: Mapping[str, OutputEvaluator] = {
    "classification": OutputEvaluator("classification", _fit_label, score_label),
    "multilabel": OutputEvaluator("multilabel", _fit_labels, score_labels),
    "regression": OutputEvaluator("regression", _fit_number, score_number, relative=True),
}
EVALUATORS: Mapping[str, Evaluator] = {**OUTPUT_EVALUATORS, "generation": TextEvaluator()}
