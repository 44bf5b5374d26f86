"""Evaluators: calibrate an artefact on the calibration rows, and score it on the reference rows, by task.

`evaluator_for` turns a task's name into its evaluator. candidates.py calibrates with it; gates/evidence_and_facts.py and
gates/compressed.py score. Tasks whose models give numbers share `OutputEvaluator`; text_evaluator.py has generation.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import intervals, maps, refit_null
from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow
from pipelines.evaluation import robustness
from pipelines.evaluation.answer_rule import AnswerRule
from pipelines.evaluation.evidence.classification import score_label
from pipelines.evaluation.evidence.evidence import Evidence, Floats, OutputEvidence
from pipelines.evaluation.evidence.multilabel import score_labels
from pipelines.evaluation.evidence.regression import score_number
from pipelines.evaluation.text_evaluator import TextEvaluator
from pipelines.models.encoder import Encoder
from pipelines.training.baselines import TfidfRival, fit_chosen_probe
from pipelines.training.tasks.choose import task_for
from pipelines.training.tasks.encoder_task import EncoderTask
from schemas.configuration.training import TrainingSettings
from schemas.manifests import Calibration, Golden
from schemas.reports import Robustness
from schemas.targets import Task, labels_of
from serving.inference.calibration import GOLDEN_COVERAGE, answered
from serving.inference.encoder_runtime import Runtime
from serving.inference.outputs import BY_TASK


@dataclass(frozen=True)
class CrossFitted:
    """A calibration fitted on n rows, and each row's outputs [n, k] under one that was fitted without the row's fold [n].

    `refitted` is as for `probabilistic.measure`; None if nothing was fitted that could move. `answers` [n, k] are each row's
    labels under thresholds that were fitted without its fold; None for tasks without thresholds.
    """

    calibration: Calibration
    outputs: Floats
    fold: NDArray[np.int64]
    refitted: Callable[[Any], Floats] | None = None
    answers: NDArray[np.bool_] | None = None


class Evaluator(Protocol):
    """The steps of a round between training and the verdict; a runtime is what `open_version` returns for the task."""

    def calibrate(self, runtime: Any, rows: Sequence[FileRow], rule: AnswerRule) -> Calibration:
        """Fit a calibration on rows outside the reference set, from the artefact's uncalibrated outputs."""

    def golden(self, runtime: Any, fitted: Calibration, texts: Sequence[str], tolerance: float) -> Golden:
        """Return the artefact's outputs for these texts under a calibration; every later load has to match them."""

    def sample(self, rows: Sequence[FileRow]) -> Sequence[FileRow]:
        """Return the rows to score: a fixed subset, where all of them would take too long."""

    def evaluate(
        self, runtime: Any, rows: Sequence[FileRow], *, split: str, cross: AnswerRule | None = None
    ) -> Evidence:
        """Score the artefact that would serve, on these rows.

        `cross`: the rows also fitted its calibration, by this rule, so each is judged under a calibration that is fitted
        without it.
        """

    def edit_flips(self, runtime: Any, evidence: Any, rows: NDArray[np.int64]) -> dict[str, Robustness]:
        """Return, by kind of edit, how many predictions on these rows of the evidence change."""

    def score_baselines(
        self, base: Any, dataset: Dataset, rows: Sequence[FileRow], settings: TrainingSettings, rule: AnswerRule
    ) -> dict[str, Evidence]:
        """Score the cheap baselines, fitted and calibrated on the dataset, by name; the one named "probe" comes first."""


@dataclass(frozen=True)
class OutputEvaluator:
    """Evaluator of a task whose models give k numbers for every text.

    `fit` turns logits [n, k] and the rows' targets into a calibration. `score` turns calibrated outputs into evidence. With
    `relative`, the tolerance of golden outputs is a share of the largest one.
    """

    name: Task
    fit: Callable[[Floats, Sequence[str], Sequence[str], AnswerRule], CrossFitted]
    score: Callable[..., OutputEvidence]
    relative: bool = False

    def calibrate(self, runtime: Runtime, rows: Sequence[FileRow], rule: AnswerRule) -> Calibration:
        """Fit on the rows whose labels the model knows; without such rows, return no calibration."""
        return self._calibrated(runtime.logits, runtime.labels, rows, rule)

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

    def evaluate(
        self, runtime: Runtime, rows: Sequence[FileRow], *, split: str, cross: AnswerRule | None = None
    ) -> OutputEvidence:
        """Score calibrated outputs, with the uncalibrated ones for the report."""
        logits = runtime.logits([row.text for row in rows])
        if cross:
            return self._cross_fitted(logits, runtime.labels, rows, cross, version=runtime.version, split=split)
        fitted = runtime.manifest.calibration
        return self._scored(logits, runtime.labels, rows, fitted, None, version=runtime.version, split=split)

    def edit_flips(self, runtime: Runtime, evidence: OutputEvidence, rows: NDArray[np.int64]) -> dict[str, Robustness]:
        """Return, by kind of edit, how many predictions differ from those of the unedited texts."""
        texts = [evidence.rows[n].text for n in rows.tolist()]
        # Not the evidence's outputs: a map that was fitted without a row may differ from the one that the edits get.
        calibrated = BY_TASK[self.name](runtime.labels, evidence.calibration)
        return robustness.count_flips(
            runtime, texts, lambda some: calibrated.apply(runtime.logits(some)), evidence.same_answer
        )

    def score_baselines(
        self, encoder: Encoder, dataset: Dataset, rows: Sequence[FileRow], settings: TrainingSettings, rule: AnswerRule
    ) -> dict[str, Evidence]:
        """Score the linear probe on frozen embeddings, and TF-IDF; each calibrated as the candidate is."""
        used, labels = [*dataset.train, *dataset.validation], dataset.labels
        task = task_for(self.name, labels, used)
        assert isinstance(task, EncoderTask)
        probe = fit_chosen_probe(task, encoder, used, settings)
        models: dict[str, Callable[[Sequence[str]], Floats]] = {
            "probe": lambda texts: probe.outputs(encoder.embed(texts))
        }
        if settings.tfidf and (tfidf := TfidfRival(task, used).fit()):
            models["tfidf"] = tfidf.outputs
        evidence: dict[str, Evidence] = {}
        for name, outputs in models.items():
            logits, details = outputs([row.text for row in rows]), {"version": name, "split": "reference"}
            if dataset.calibration:
                fitted = self._calibrated(outputs, labels, dataset.calibration, rule)
                evidence[name] = self._scored(logits, labels, rows, fitted, None, **details)
            else:
                evidence[name] = self._cross_fitted(logits, labels, rows, rule, **details)
        return evidence

    def _calibrated(
        self,
        logits: Callable[[Sequence[str]], Floats],
        labels: Sequence[str],
        rows: Sequence[FileRow],
        rule: AnswerRule,
    ) -> Calibration:
        usable = [rows[n] for n in self._usable(labels, rows)]
        if not usable:
            return Calibration()
        return self.fit(logits([row.text for row in usable]), [row.label for row in usable], labels, rule).calibration

    def _scored(
        self,
        logits: Floats,
        labels: Sequence[str],
        rows: Sequence[FileRow],
        calibration: Calibration,
        outputs: Floats | None,
        **details: Any,
    ) -> OutputEvidence:
        """Return the evidence of logits [n, k] under a calibration, or of `outputs` [n, k] that it gave already."""
        calibrated, raw = (BY_TASK[self.name](labels, fitted).apply(logits) for fitted in (calibration, Calibration()))
        outputs = calibrated if outputs is None else outputs
        return self.score(outputs, labels, rows, calibration=calibration, raw=raw, **details)

    def _cross_fitted(
        self, logits: Floats, labels: Sequence[str], rows: Sequence[FileRow], rule: AnswerRule, **details: Any
    ) -> OutputEvidence:
        """Return the evidence of logits [n, k], each row judged under a calibration that was fitted without it."""
        usable = self._usable(labels, rows)
        if not usable:
            return self._scored(logits, labels, rows, Calibration(), None, **details)
        fitted = self.fit(logits[usable], [rows[n].label for n in usable], labels, rule)
        outputs = BY_TASK[self.name](labels, fitted.calibration).apply(logits)
        if fitted.answers is not None:
            details["answers"] = answered(fitted.calibration, outputs)
            details["answers"][usable] = fitted.answers
        outputs[usable] = fitted.outputs
        details["fold"] = np.full(len(rows), -1, dtype=np.int64)  # a row with a label that the model lacks fits nothing
        details["fold"][usable] = fitted.fold
        if fitted.refitted and len(usable) == len(rows):
            details["refitted"] = fitted.refitted
        return self._scored(logits, labels, rows, fitted.calibration, outputs, **details)

    def _usable(self, labels: Sequence[str], rows: Sequence[FileRow]) -> list[int]:
        """Return the numbers of the rows whose labels are all among the model's."""
        known = set(labels)
        return [n for n, row in enumerate(rows) if known.issuperset(labels_of(self.name, row.label))]


def evaluate(
    runtime: Runtime, rows: Sequence[FileRow], *, split: str, cross: AnswerRule | None = None
) -> OutputEvidence:
    """Score an artefact of any task but generation, by the task in its manifest; `cross` as for an `Evaluator`."""
    return OUTPUT_EVALUATORS[runtime.manifest.task].evaluate(runtime, rows, split=split, cross=cross)


def evaluation_threads(settings: TrainingSettings) -> int:
    """Return the threads of ONNX Runtime, or torch, for evaluation: as many as training may use."""
    return settings.threads or os.cpu_count() or 1


def evaluator_for(name: str) -> Evaluator:
    """Return the evaluator of a task."""
    return EVALUATORS[name]


def _fit_label(logits: Floats, targets: Sequence[str], labels: Sequence[str], rule: AnswerRule) -> CrossFitted:
    index = {label: n for n, label in enumerate(labels)}
    fitted = maps.cross_fit(logits, np.array([index[target] for target in targets]), rule.sets)
    refitted = refit_null.label_shift(logits, fitted) if fitted.calibration.fitted_rows >= maps.MIN_ROWS else None
    return CrossFitted(fitted.calibration, fitted.probabilities, fitted.fold, refitted)


def _fit_labels(logits: Floats, targets: Sequence[str], labels: Sequence[str], rule: AnswerRule) -> CrossFitted:
    label_sets = [set(labels_of("multilabel", target)) for target in targets]
    truth = np.array([[label in given for label in labels] for given in label_sets])
    fitted = maps.cross_fit_each(logits, truth, rule.metric, rule.at_least_one)
    refitted = refit_null.each_label_shift(logits, fitted) if fitted.calibration.fitted_rows >= maps.MIN_ROWS else None
    return CrossFitted(fitted.calibration, fitted.probabilities, fitted.fold, refitted, fitted.answers)


def _fit_number(logits: Floats, targets: Sequence[str], _labels: Sequence[str], _rule: AnswerRule) -> CrossFitted:
    fitted = intervals.fit(logits[:, 0], None, np.array([float(target) for target in targets]))
    fold = np.arange(len(targets)) % maps.FOLDS
    return CrossFitted(Calibration(fitted_rows=fitted.fitted_rows, intervals=fitted), logits.astype(np.float64), fold)


OUTPUT_EVALUATORS: Mapping[str, OutputEvaluator] = {
    "classification": OutputEvaluator("classification", _fit_label, score_label),
    "multilabel": OutputEvaluator("multilabel", _fit_labels, score_labels),
    "regression": OutputEvaluator("regression", _fit_number, score_number, relative=True),
}
EVALUATORS: Mapping[str, Evaluator] = {**OUTPUT_EVALUATORS, "generation": TextEvaluator()}
