"""Evaluators: calibrate an artefact on the calibration rows, and score it on the reference rows, by task.

`evaluator_for` turns a task's name into its evaluator. candidates.py calibrates with it; gates/evidence_and_facts.py and
gates/compressed.py score. Tasks whose models give numbers share `OutputEvaluator`; text_evaluator.py has generation.
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
from schemas.targets import Task, labels_of
from schemas.training_settings import TrainingSettings
from serving.inference.calibration import GOLDEN_COVERAGE
from serving.inference.encoder_runtime import Runtime
from serving.inference.outputs import BY_TASK

SetMethod = Literal["lac", "aps"]


class Evaluator(Protocol):
    """The steps of a round between training and the verdict; a runtime is what `open_version` returns for the task."""

    def calibrate(self, runtime: Any, rows: Sequence[FileRow], sets: SetMethod) -> Calibration:
        """Fit a calibration on rows outside the reference set, from the artefact's uncalibrated outputs."""

    def golden(self, runtime: Any, fitted: Calibration, texts: Sequence[str], tolerance: float) -> Golden:
        """Return the artefact's outputs for these texts under a calibration; every later load has to match them."""

    def sample(self, rows: Sequence[FileRow]) -> Sequence[FileRow]:
        """Return the rows to score: a fixed subset, where all of them would take too long."""

    def evaluate(self, runtime: Any, rows: Sequence[FileRow], *, split: str) -> Evidence:
        """Score the artefact that would serve, on these rows."""

    def edit_flips(self, runtime: Any, evidence: Any, rows: NDArray[np.int64]) -> dict[str, Robustness]:
        """Return, by kind of edit, how many predictions on these rows of the evidence change."""

    def score_baseline(
        self, base: Any, dataset: Dataset, rows: Sequence[FileRow], settings: TrainingSettings
    ) -> Evidence:
        """Score the cheap baseline, fitted on the dataset."""


@dataclass(frozen=True)
class OutputEvaluator:
    """Evaluator of a task whose models give k numbers for every text.

    `fit` turns logits [n, k] and the rows' targets into a calibration. `score` turns calibrated outputs into evidence. With
    `relative`, the tolerance of golden outputs is a share of the largest one.
    """

    name: Task
    fit: Callable[[Floats, Sequence[str], Sequence[str], SetMethod], Calibration]
    score: Callable[..., OutputEvidence]
    relative: bool = False

    def calibrate(self, runtime: Runtime, rows: Sequence[FileRow], sets: SetMethod) -> Calibration:
        """Fit on the rows whose labels the model knows; without such rows, return no calibration."""
        known = set(runtime.labels)
        usable = [row for row in rows if known.issuperset(labels_of(self.name, row.label))]
        if not usable:
            return Calibration()
        logits = runtime.logits([row.text for row in usable])
        return self.fit(logits, [row.label for row in usable], runtime.labels, sets)

    def golden(self, runtime: Runtime, fitted: Calibration, texts: Sequence[str], tolerance: float) -> Golden:
        """Return calibrated outputs, and the prediction sets at GOLDEN_COVERAGE."""
        calibrated = BY_TASK[self.name](runtime.labels, fitted)
        outputs = calibrated.apply(runtime.logits(texts))
        return Golden(
            texts=list(texts),
            probabilities=outputs.tolist(),
            sets=[np.flatnonzero(row).tolist() for row in calibrated.sets(outputs, GOLDEN_COVERAGE)],
            tolerance=tolerance * (float(np.abs(outputs).max()) if self.relative else 1.0),
        )

    def sample(self, rows: Sequence[FileRow]) -> Sequence[FileRow]:
        """Return all rows."""
        return rows

    def evaluate(self, runtime: Runtime, rows: Sequence[FileRow], *, split: str) -> OutputEvidence:
        """Score calibrated outputs, with the uncalibrated ones for the report."""
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
        """Return, by kind of edit, how many predictions differ from those of the unedited texts."""
        texts = [evidence.rows[n].text for n in rows.tolist()]
        return robustness.count_flips(runtime, texts, evidence.outputs[rows], evidence.same_answer)

    def score_baseline(
        self, encoder: Encoder, dataset: Dataset, rows: Sequence[FileRow], settings: TrainingSettings
    ) -> OutputEvidence:
        """Score the linear probe on frozen embeddings that training starts from."""
        used, labels = [*dataset.train, *dataset.validation], dataset.labels
        task = task_for(self.name, labels, used)
        assert isinstance(task, EncoderTask)
        outputs = probe_outputs(task, encoder, used, [row.text for row in rows], settings)
        return self.score(self._uncalibrated(labels, outputs), labels, rows, version="probe", split="reference")

    def _uncalibrated(self, labels: Sequence[str], logits: NDArray[np.float64]) -> Floats:
        return BY_TASK[self.name](labels, Calibration()).apply(logits)


def evaluate(runtime: Runtime, rows: Sequence[FileRow], *, split: str) -> OutputEvidence:
    """Score an artefact of any task but generation, by the task in its manifest."""
    return OUTPUT_EVALUATORS[runtime.manifest.task].evaluate(runtime, rows, split=split)


def evaluation_threads(settings: TrainingSettings) -> int:
    """Return the threads of ONNX Runtime, or torch, for evaluation: as many as training may use."""
    return settings.threads or os.cpu_count() or 1


def evaluator_for(name: str) -> Evaluator:
    """Return the evaluator of a task."""
    return EVALUATORS[name]


def _fit_label(logits: Floats, targets: Sequence[str], labels: Sequence[str], sets: SetMethod) -> Calibration:
    index = {label: n for n, label in enumerate(labels)}
    return maps.fit(logits, np.array([index[target] for target in targets]), sets)


def _fit_labels(logits: Floats, targets: Sequence[str], labels: Sequence[str], _sets: SetMethod) -> Calibration:
    label_sets = [set(labels_of("multilabel", target)) for target in targets]
    return maps.fit_each(logits, np.array([[label in given for label in labels] for given in label_sets]))


def _fit_number(logits: Floats, targets: Sequence[str], _labels: Sequence[str], _sets: SetMethod) -> Calibration:
    fitted = intervals.fit(logits[:, 0], None, np.array([float(target) for target in targets]))
    return Calibration(fitted_rows=fitted.fitted_rows, intervals=fitted)


OUTPUT_EVALUATORS: Mapping[str, OutputEvaluator] = {
    "classification": OutputEvaluator("classification", _fit_label, score_label),
    "multilabel": OutputEvaluator("multilabel", _fit_labels, score_labels),
    "regression": OutputEvaluator("regression", _fit_number, score_number, relative=True),
}
EVALUATORS: Mapping[str, Evaluator] = {**OUTPUT_EVALUATORS, "generation": TextEvaluator()}
