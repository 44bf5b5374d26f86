"""Evidence and facts: run the exact artefacts on the reference rows, and collect what else the gates read.

Turns version directories and a dataset into `RoundEvidence` and `Facts`. training_round.py calls it between training and the
verdict.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow
from pipelines.dataset.report.profile import psi
from pipelines.evaluation import robustness
from pipelines.evaluation.evaluators import Evaluator
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
class RoundEvidence:
    """Evidence of candidate, probe and champion on the same rows in the same order, and their robustness."""

    candidate: Evidence
    probe: Evidence
    champion: Evidence | None = None
    robustness: dict[str, dict[str, Robustness]] = field(default_factory=dict)

    @property
    def reports(self) -> dict[str, EvaluationReport]:
        """Return the evaluation reports of "candidate", "probe" and, if there is one, "champion"."""
        reports = {"candidate": self.candidate.report, "probe": self.probe.report}
        return reports | ({"champion": self.champion.report} if self.champion else {})


def gather(
    task: Evaluator,
    candidate: Loaded,
    champion: Loaded | None,
    dataset: Dataset,
    base: Base,
    settings: TrainingSettings,
    policy: Policy,
    progress: Callable[[float], None],
) -> RoundEvidence:
    """Score candidate, champion and probe on the reference rows, and both models on edited texts.

    `progress` receives the share that is done, from 0 to 1.
    """
    rows = task.sample(dataset.judge)
    models = {"candidate": candidate} | ({"champion": champion} if champion else {})
    evidence = {}
    for name, model in models.items():
        evidence[name] = task.evaluate(model, rows, split="reference")
        progress(0.5 * len(evidence) / len(models))
    edited = robustness.chosen_rows([row.text for row in rows], policy.robustness.rows)
    flips = {name: task.edit_flips(model, evidence[name], edited) for name, model in models.items()}
    progress(0.8)
    probe = task.score_baseline(base, dataset, rows, settings)
    return RoundEvidence(evidence["candidate"], probe, evidence.get("champion"), flips)


def facts(
    task: Evaluator,
    judged: RoundEvidence,
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
    """Collect the facts that the gates read beside the evidence, and smoke-test the artefact in a fresh process.

    Args:
        task: the evaluator of the project's task.
        judged: evidence of the round's models.
        candidate: the candidate's runtime, for the must-pass rows.
        dataset: of this round.
        directory: the candidate's artefact.
        policy: the thresholds.
        look: number of this look since the last promotion, from 1.
        must_pass: rows that have to be right.
        before: manifest of the champion's dataset, to measure label drift against.
        taught: labels that the champion learned, by their present names.

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
    """Return the labels that the newest feedback rows lack; none if there is no feedback."""
    feedback = [row for row in [*dataset.train, *dataset.validation] if row.source != "seed"]
    recent = sorted(feedback, key=lambda row: (row.order, row.text))[-rows:]
    seen = {label for row in recent for label in labels_of(task, row.label)}
    return frozenset(dataset.labels) - seen if recent else frozenset()


def _wrong(task: Evaluator, runtime: Loaded, rows: Sequence[FileRow]) -> list[str]:
    if not rows:
        return []
    passes = task.evaluate(runtime, rows, split="must pass").passes
    return [row.text for row, good in zip(rows, passes, strict=True) if not good]


def _plain(text: str) -> str:
    """Normalise as the dataset does for equality; a stricter rule here would stop rounds that the dataset let through."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
