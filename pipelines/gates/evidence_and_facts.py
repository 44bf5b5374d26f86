"""Evidence and facts: run the exact artefacts on the reference rows, and collect what else the gates read.

Turns version directories and a dataset into `RoundEvidence` and `Facts`. training_round.py calls it between training and the
verdict.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.dataset.build import Dataset
from pipelines.dataset.examples import UNCHALLENGED
from pipelines.dataset.files import FileRow
from pipelines.evaluation import robustness
from pipelines.evaluation.answer_rule import AnswerRule
from pipelines.evaluation.evaluators import Evaluator
from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.evaluation.smoke_test import try_in_fresh_process
from pipelines.gates.policy import Policy
from pipelines.gates.verdict import Facts
from pipelines.metrics.stability import psi
from pipelines.models.base_models import Base
from schemas.configuration.training import TrainingSettings
from schemas.manifests import DatasetManifest
from schemas.records import Look
from schemas.reports import EvaluationReport, Robustness
from schemas.targets import Task, labels_of
from serving.inference.loading import Loaded
from serving.inference.normalise import folded


@dataclass(frozen=True)
class RoundEvidence:
    """Evidence of candidate, baselines and champion on the same rows in the same order, and their robustness.

    The first baseline is the probe; `rivals` has the others by name.
    """

    candidate: Evidence
    probe: Evidence
    champion: Evidence | None = None
    robustness: dict[str, dict[str, Robustness]] = field(default_factory=dict)
    rivals: dict[str, Evidence] = field(default_factory=dict)

    @property
    def baseline(self) -> Evidence:
        """Return the strongest baseline by the task's main metric, which the candidate has to match."""
        best = self.probe
        for rival in self.rivals.values():
            best = rival if rival.compared_with(best).observed > 0 else best
        return best

    @property
    def reports(self) -> dict[str, EvaluationReport]:
        """Return the evaluation reports of "candidate", "probe", the other baselines and, if there is one, "champion"."""
        reports = {"candidate": self.candidate.report, "probe": self.probe.report}
        reports |= {name: rival.report for name, rival in self.rivals.items()}
        return reports | ({"champion": self.champion.report} if self.champion else {})


def gather(
    task: Evaluator,
    candidate: Loaded,
    champion: Loaded | None,
    dataset: Dataset,
    base: Base,
    settings: TrainingSettings,
    policy: Policy,
    rule: AnswerRule,
    progress: Callable[[float], None],
) -> RoundEvidence:
    """Score candidate, champion and baselines on the reference rows, and both models on edited texts.

    If these rows also fit the calibration, every model is calibrated by cross-fitting, the champion anew: its own map was
    fitted on most of these rows. `progress` receives the share that is done, from 0 to 1.
    """
    rows = task.sample(dataset.reference)
    models = {"candidate": candidate} | ({"champion": champion} if champion else {})
    evidence = {}
    for name, model in models.items():
        evidence[name] = task.evaluate(model, rows, split="reference", cross=None if dataset.calibration else rule)
        progress(0.5 * len(evidence) / len(models))
    edited = robustness.chosen_rows([row.text for row in rows], policy.robustness.rows)
    flips = {name: task.edit_flips(model, evidence[name], edited) for name, model in models.items()}
    progress(0.8)
    baselines = task.score_baselines(base, dataset, rows, settings, rule)
    probe = baselines.pop("probe")
    return RoundEvidence(evidence["candidate"], probe, evidence.get("champion"), flips, baselines)


def facts(
    task: Evaluator,
    judged: RoundEvidence,
    candidate: Loaded,
    dataset: Dataset,
    directory: Path,
    policy: Policy,
    *,
    look: Look | None,
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
        look: this look's row in the ledger; None without a champion.
        must_pass: rows that have to be right.
        before: manifest of the champion's dataset, to measure label drift against.
        taught: labels that the champion learned, by their present names.

    """
    tried = try_in_fresh_process(directory)
    people, quarantined, leaked = data_facts(dataset)
    return Facts(
        look=look.number if look else 0,
        alpha=look.alpha if look else 0.0,
        next_alpha=policy.alpha_at(look.number + 1) if look else None,
        fresh=look.fresh_rows if look else 0,
        people=people,
        quarantined=quarantined,
        drift=psi(before.rows_by_label, dataset.manifest.rows_by_label) if before and dataset.labels else None,
        leaked=leaked,
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


def data_facts(dataset: Dataset) -> tuple[int, int, int]:
    """Return the number of people, of those in quarantine, and of reference rows that are training rows too."""
    used = [*dataset.train, *dataset.validation]
    quarantined = set(dataset.manifest.quarantined_people)
    trained = {_plain(row.text) for row in used}
    leaked = sum(_plain(row.text) in trained for row in dataset.reference)
    return len({row.person for row in used if row.person} | quarantined), len(quarantined), leaked


def vanished(dataset: Dataset, task: Task, taught: frozenset[str]) -> frozenset[str]:
    """Return the labels in use that were taught before, and that no row trains, validates, calibrates or judges now."""
    given = [row.label for row in [*dataset.train, *dataset.validation]]
    given += [row.label for row in [*dataset.reference, *dataset.calibration]]
    return (taught & frozenset(dataset.labels)) - {name for label in given for name in labels_of(task, label)}


def _without_recent_feedback(dataset: Dataset, task: Task, rows: int) -> frozenset[str]:
    """Return the labels that the newest feedback rows lack; none if there is no feedback."""
    feedback = [row for row in [*dataset.train, *dataset.validation] if row.source not in ("seed", UNCHALLENGED)]
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
    return folded(unicodedata.normalize("NFC", text))
