"""Judgement of a round's candidate: evaluate the exact artefact, apply the gates, seal the report into the version.

training_round.py calls `judge` once; a resumed round reads the sealed report instead. The gates themselves are gates/.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from pipelines import candidates
from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow, read_rows
from pipelines.dataset.project_dataset import columns_of
from pipelines.dataset.split import cluster_key
from pipelines.evaluation.evaluators import evaluation_threads, evaluator_for
from pipelines.gates import before_looking, evidence_and_facts, verdict
from pipelines.gates.evidence_and_facts import RoundEvidence
from pipelines.report import round_report
from pipelines.round_inputs import RoundInputs
from schemas.labels import LabelMap
from schemas.manifests import DatasetManifest
from schemas.records import Look
from schemas.reports import GateResult, RoundReport
from schemas.settings import Settings
from serving.inference.loading import Loaded, open_version


def judge(inputs: RoundInputs, dataset: Dataset, directory: Path) -> RoundReport:
    """Return the report on the candidate in `directory`, after writing it beside the version and into the round's folder.

    Raises ValueError if the champion was trained for another task than `model.task`.
    """
    record, settings, registry, policy = inputs.record, inputs.settings, inputs.registry, inputs.policy
    candidate, champion = _runtimes(inputs, directory)
    registry.update_round(record.round_id, step="evaluation", candidate_version=candidate.version)
    history = (directory / "history.jsonl").read_text(encoding="utf-8")
    stopped = _held_back(inputs, dataset, candidate, champion, history) if champion else None
    look = None if stopped or champion is None else _open_look(inputs, dataset, champion, candidate)
    task = evaluator_for(settings.model.task)
    judged = evidence_and_facts.gather(
        task,
        candidate,
        None if stopped else champion,
        dataset,
        inputs.base,
        settings.training,
        policy,
        inputs.rule,
        lambda share: inputs.progress("evaluation", share),
    )
    inputs.progress("gates", 0.0)
    previous = _previous_policy(inputs)
    facts = _facts(inputs, dataset, judged, candidate, champion, directory, look)
    if stopped:
        result = verdict.judge_alone(stopped, judged.candidate, judged.baseline, facts, policy, previous)
    else:
        result = verdict.judge(judged.champion, judged.candidate, judged.baseline, facts, policy, previous)
    if look:
        registry.close_look(look.sequence, p=result.p, verdict=result.verdict.value)
    result = result.model_copy(update={"results": [*result.results, *candidates.trials(inputs.folder)]})
    report = round_report.build(record, judged, result, candidate.manifest, dataset.manifest, policy, history)
    round_report.seal(directory, report, candidate.manifest, inputs.policy_text)
    round_report.write(inputs.folder, report)
    return report


def _held_back(
    inputs: RoundInputs, dataset: Dataset, candidate: Loaded, champion: Loaded, history: str
) -> GateResult | None:
    """Return the gate that keeps the candidate away from the reference set; None if it may be compared there."""
    if stopped := before_looking.data_stops(
        len(dataset.reference), *evidence_and_facts.data_facts(dataset), inputs.policy
    ):
        return stopped
    assert inputs.record.champion_version is not None
    since = inputs.registry.round(inputs.registry.version(inputs.record.champion_version).round_id).created_at
    lines = [json.loads(line) for line in history.splitlines()]
    rows = before_looking.unseen_by_both(dataset.validation, candidate.manifest, lines, since)
    if not rows:
        return None
    task = evaluator_for(inputs.settings.model.task)
    sample = task.sample(rows)
    before, after = (task.evaluate(model, sample, split="validation") for model in (champion, candidate))
    return before_looking.not_better(before, after)


def _open_look(inputs: RoundInputs, dataset: Dataset, champion: Loaded, candidate: Loaded) -> Look:
    """Return this round's look, entered in the ledger before anything is compared."""
    name, policy = inputs.settings.model.name, inputs.policy
    return inputs.registry.open_look(
        inputs.record.round_id,
        champion.version,
        candidate.version,
        [cluster_key(name, row.text) for row in dataset.reference],
        dataset.manifest.reference_sha256,
        policy.alpha_at,
        least_fresh=policy.data.min_judge_rows,
    )


def _facts(
    inputs: RoundInputs,
    dataset: Dataset,
    judged: RoundEvidence,
    candidate: Loaded,
    champion: Loaded | None,
    directory: Path,
    look: Look | None,
) -> verdict.Facts:
    settings, names = inputs.settings, inputs.registry.label_map()
    return evidence_and_facts.facts(
        evaluator_for(settings.model.task),
        judged,
        candidate,
        dataset,
        directory,
        inputs.policy,
        look=look,
        must_pass=_must_pass(settings, names),
        before=_champion_dataset(inputs, names),
        taught=_taught_labels(champion, names),
    )


def _runtimes(inputs: RoundInputs, directory: Path) -> tuple[Loaded, Loaded | None]:
    """Return candidate and champion as they would be served, but with the evaluation's number of threads."""
    threads, task = evaluation_threads(inputs.settings.training), inputs.settings.model.task
    candidate = open_version(directory, threads=threads)
    champion, digest = inputs.champion()
    if champion is None:
        return candidate, None
    loaded = open_version(champion, digest, threads=threads)
    labels = inputs.registry.label_map().outputs(loaded.manifest.labels)
    loaded.manifest = loaded.manifest.model_copy(update={"labels": labels})
    if loaded.manifest.task != task:
        raise ValueError(
            f"model.task = {task!r}, but the champion {loaded.version} was trained for {loaded.manifest.task}: "
            "a project keeps its task; create another project with `ratchet init`"
        )
    return candidate, loaded


def _must_pass(settings: Settings, names: LabelMap) -> list[FileRow]:
    if not settings.gates.must_pass:
        return []
    rows = read_rows(settings.path(settings.gates.must_pass), settings.model.task, columns_of(settings))
    return [replace(row, label=names.target(settings.model.task, row.label)) for row in rows]


def _champion_dataset(inputs: RoundInputs, names: LabelMap) -> DatasetManifest | None:
    """Return the champion's dataset manifest under current label names, so that renaming a label is not drift."""
    version = inputs.record.champion_version
    rounds = inputs.registry.rounds() if version else []
    before = next((known.dataset for known in rounds if known.candidate_version == version), None)
    if before is None:
        return None
    rows = Counter[str]()
    for name, n in before.rows_by_label.items():
        rows[names.current(name)] += n
    return before.model_copy(update={"rows_by_label": dict(rows)})


def _taught_labels(champion: Loaded | None, names: LabelMap) -> frozenset[str]:
    """Return the labels that the champion saw in training rows, under their current names."""
    if champion is None:
        return frozenset()
    manifest = champion.manifest
    return frozenset(names.current(name) for name in manifest.labels if name not in manifest.untaught_labels)


def _previous_policy(inputs: RoundInputs) -> dict[str, dict[str, JsonValue]] | None:
    """Return the policy of this round's earlier attempt, or else of the last judged round."""
    judged = (known.gate_report for known in [inputs.record, *inputs.registry.rounds()] if known.gate_report)
    return next((report.policy for report in judged if report.policy), None)
