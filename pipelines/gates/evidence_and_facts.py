"""Judging: run the exact artefacts on the judging rows, and find out all else that the gates ask.

Turns version directories and a dataset into evidence and `Facts`. training_round.py calls it between training and the verdict.
It deliberately judges nothing: gates.py does, on what is gathered here.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow
from pipelines.dataset.report.profile import psi
from pipelines.evaluation import robustness
from pipelines.evaluation.evaluators import JudgedTask
from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.evaluation.smoke_test import try_in_fresh_process
from pipelines.gates.policy import Policy
from pipelines.gates.verdict import Facts
from pipelines.models.base_models import Base
from schemas.manifests import DatasetManifest
from schemas.reports import EvaluationReport, Robustness
from schemas.targets import Task, labels_of
from schemas.training_settings import TrainingSettings
from serving.inference.loading import Loaded


@dataclass(frozen=True)
class Judged:
    """Evidence on the same rows in the same order, and how steady the answers are."""

    candidate: Evidence
    probe: Evidence
    champion: Evidence | None = None
    robustness: dict[str, dict[str, Robustness]] = field(default_factory=dict)

    @property
    def reports(self) -> dict[str, EvaluationReport]:
        """'candidate', 'probe' and, if there is one, 'champion'."""
        found = {"candidate": self.candidate.report, "probe": self.probe.report}
        return found | ({"champion": self.champion.report} if self.champion else {})


def gather(
    task: JudgedTask,
    candidate: Loaded,
    champion: Loaded | None,
    dataset: Dataset,
    base: Base,
    settings: TrainingSettings,
    policy: Policy,
    progress: Callable[[float], None],
) -> Judged:
    """Score candidate, champion and probe on the judging rows, and edited texts on both models."""
    judge = task.chosen(dataset.judge)
    models = {"candidate": candidate} | ({"champion": champion} if champion else {})
    found = {}
    for name, model in models.items():
        found[name] = task.evaluate(model, judge, split="reference")
        progress(0.5 * len(found) / len(models))
    edited = robustness.chosen_rows([row.text for row in judge], policy.robustness.rows)
    flips = {name: task.edits(model, found[name], edited) for name, model in models.items()}
    progress(0.8)
    probe = task.baseline(base, dataset, judge, settings)
    return Judged(found["candidate"], probe, found.get("champion"), flips)


def facts(
    task: JudgedTask,
    judged: Judged,
    candidate: Loaded,
    dataset: Dataset,
    directory: Path,
    policy: Policy,
    *,
    look: int,
    must_pass: Sequence[FileRow],
    before: DatasetManifest | None,
    taught: frozenset[str] = frozenset(),
) -> Facts:
    """What the gates look at beside the evidence; the artefact in `directory` is tried in a fresh process.

    `before` is what the champion was trained on: the label mix is compared with it. `taught` are the labels that rows have taught
    the champion, by their present names.
    """
    used = [*dataset.train, *dataset.validation]
    people = {row.person for row in used if row.person}
    quarantined = dataset.manifest.quarantined_people
    trained = {_plain(row.text) for row in used}
    tried = try_in_fresh_process(directory)
    return Facts(
        look=look,
        alpha=policy.alpha_at(look),
        people=len(people | set(quarantined)),
        quarantined=len(quarantined),
        drift=psi(before.rows_by_label, dataset.manifest.rows_by_label) if before and dataset.labels else None,
        leaked=sum(_plain(row.text) in trained for row in dataset.judge),
        absent=_without_recent_feedback(dataset, judged.candidate.task, policy.forgetting.recent_rows),
        vanished=vanished(dataset, judged.candidate.task, taught),
        must_pass_rows=len(must_pass),
        must_pass_wrong=_wrong(task, candidate, must_pass),
        robustness=judged.robustness,
        latency_ms=tried.latency_ms,
        memory_mb=tried.memory_mb,
        size_mb=tried.size_mb,
        load_error=tried.error,
    )


def vanished(dataset: Dataset, task: Task, taught: frozenset[str]) -> frozenset[str]:
    """Return the labels in use that were taught before, and that no row trains, validates, calibrates or judges now."""
    given = [row.label for row in [*dataset.train, *dataset.validation]]
    given += [row.label for row in [*dataset.judge, *dataset.calibration]]
    return (taught & frozenset(dataset.labels)) - {name for label in given for name in labels_of(task, label)}


def _without_recent_feedback(dataset: Dataset, task: Task, rows: int) -> frozenset[str]:
    """Labels that none of the newest feedback rows carries; none if there is no feedback at all."""
    feedback = [row for row in [*dataset.train, *dataset.validation] if row.source != "seed"]
    recent = sorted(feedback, key=lambda row: (row.order, row.text))[-rows:]
    seen = {label for row in recent for label in labels_of(task, row.label)}
    return frozenset(dataset.labels) - seen if recent else frozenset()


def _wrong(task: JudgedTask, runtime: Loaded, rows: Sequence[FileRow]) -> list[str]:
    if not rows:
        return []
    passes = task.evaluate(runtime, rows, split="must pass").passes
    return [row.text for row, good in zip(rows, passes, strict=True) if not good]


def _plain(text: str) -> str:
    """Exactly what the dataset calls equal: a stricter idea of a leak than its own would stop rounds that it let through."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
