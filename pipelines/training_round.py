"""The round: from claimed to promoted, rejected or short of evidence.

`run_round` is the walk's steps 5 to 8 in one straight line; the command line runs it in a process of its own. Steps never
call each other. It deliberately does not decide when to run: that is the scheduler's.

Resumable: a killed round is started again. Its dataset is the same, because the cut was fixed when it was claimed; a version
directory whose manifest.json stands is not trained again; what was judged is not judged again, under whatever policy; promotion
is one transaction, and a no-op the second time.
"""

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from pipelines import candidates
from pipelines.dataset.build import Dataset
from pipelines.dataset.files import read_rows
from pipelines.dataset.project_dataset import collect_and_build, columns_of, write_rows
from pipelines.dataset.report.write import write_report
from pipelines.evaluation.evaluators import evaluation_threads, judged_task
from pipelines.feature_store.store import FeedbackRow
from pipelines.gates import evidence_and_facts
from pipelines.gates import verdict as gates
from pipelines.gates.policy import Policy, load_policy
from pipelines.models.base_models import Base, open_base
from pipelines.report import mlflow_tracking, round_report
from schemas.labels import LabelMap
from schemas.manifests import DatasetManifest
from schemas.records import Champion, Pace, RoundRecord, RoundState
from schemas.reports import GateResult, RoundReport, Verdict
from schemas.settings import Settings
from schemas.toml_file import decode
from serving.artifacts import ArtifactStore
from serving.atomic_write import atomic_write
from serving.inference.loading import Loaded, open_version
from serving.model_directory import read_manifest
from serving.registry.marker import check
from serving.registry.registry import ChampionMoved, Registry

log = logging.getLogger("ratchet.training_round")


class Progress(Protocol):
    """Told of a step's name, its share from 0 to 1 and, while training, the pace."""

    def __call__(self, step: str, share: float, pace: Pace | None = None, /) -> None:
        """Show it."""


class Feedback(Protocol):
    """What a round asks of the feature store."""

    def labelled_feedback(self, cut: dict[str, int] | None = None) -> list[FeedbackRow]:
        """Effective feedback up to the cut."""

    def recent_predictions(self, limit: int) -> list[tuple[str, str]]:
        """Text and predicted target of the newest predictions."""


def run_round(
    round_id: str,
    *,
    settings: Settings,
    registry: Registry,
    store: ArtifactStore,
    features: Feedback | None,
    token: int | None,
    progress: Progress,
    announce: Callable[[Champion], None] | None = None,
) -> RoundRecord:
    """Run a claimed round, or go on with one that died.

    Args:
        round_id: a claimed or running round.
        settings: the project's.
        registry: where state and verdict go.
        store: where the candidate goes.
        features: source of feedback; None before there is any.
        token: fencing token of the scheduler's lease; None when a person runs the round.
        progress: called with a step's name, its share from 0 to 1 and, while training, the pace.
        announce: told of a promotion; may fail, the registry is the truth.

    Raises:
        RoundOver: the round has ended.
        RegistryLost: the registry is not the one that promoted what the store holds.
        StaleLease: another scheduler took over; the round stays as it is and is resumed there.

    """
    check(registry, store)
    record = registry.start_round(round_id)
    folder = round_folder(settings, round_id)
    folder.mkdir(parents=True, exist_ok=True)
    # Read once: an edit while the round runs must not part what compression was judged by from what the report attests.
    policy_text = decode(settings.path(settings.gates.policy).read_bytes(), "policy.toml")
    policy = load_policy(policy_text)
    base = open_base(settings.model)

    progress("dataset", 0.0)
    dataset = _dataset(record, settings, registry, features, base)
    write_rows(folder, dataset)
    write_report(folder, dataset, settings, registry, features, base)
    registry.update_round(round_id, step="dataset", dataset=dataset.manifest)
    _crash_at("dataset")
    present = {row.label for row in dataset.train}
    if len(present) < 2 or not dataset.judge:
        missing = "two different targets to train on" if len(present) < 2 else "reference rows to judge by"
        return _end(registry, folder, round_id, RoundState.SKIPPED, f"nothing to do: without {missing}")

    champion, _ = _champion(record, registry, store, settings)

    def traffic(limit: int) -> list[str]:
        return [text for text, _ in features.recent_predictions(limit)] if features else []

    names = registry.label_map()
    directory = candidates.make(record, dataset, base, settings, folder, progress, traffic, policy, champion, names)
    _crash_at("training")

    report = round_report.sealed(directory)
    if report is None:
        report = _judge(directory, record, dataset, base, settings, registry, store, progress, policy, policy_text)
    elif report.champion_version != record.champion_version:
        detail = f"judged against {report.champion_version}; the champion is {record.champion_version} now"
        return _end(registry, folder, round_id, RoundState.REJECTED, detail)
    verdict = report.gate_report
    registry.update_round(round_id, step="gates", evaluations=report.evaluations, gate_report=verdict)
    _crash_at("gates")

    progress("promotion", 0.0)
    manifest = read_manifest(directory)
    sealed = round_report.sealed_folder(directory)
    digest = store.put(sealed)
    registry.register_version(manifest, digest, servable=verdict.verdict is Verdict.PASS)
    mlflow_tracking.log_version(settings, sealed)
    _crash_at("promotion")
    if verdict.verdict is not Verdict.PASS:
        state = RoundState.REJECTED if verdict.verdict is Verdict.FAIL else RoundState.INSUFFICIENT
        return _end(registry, folder, round_id, state, _why(verdict.results))
    if settings.gates.approval == "manual":
        detail = f"every gate passed; waiting for `ratchet round approve {round_id}`"
        return _end(registry, folder, round_id, RoundState.AWAITING_APPROVAL, detail)
    try:
        promoted = registry.promote(
            manifest.model_version, expected=record.champion_version, token=token, actor="gates", round_id=round_id
        )
    except ChampionMoved as error:
        return _end(registry, folder, round_id, RoundState.REJECTED, f"passed, but {error}")
    if announce is not None:
        announce(promoted)
    progress("promotion", 1.0)
    return _end(registry, folder, round_id, RoundState.PROMOTED, "promoted")


def round_folder(settings: Settings, round_id: str) -> Path:
    """Where a round works."""
    return settings.path("state/rounds") / round_id


def _dataset(
    record: RoundRecord, settings: Settings, registry: Registry, features: Feedback | None, base: Base
) -> Dataset:
    """What the round's cut holds; replay counts from when the champion's round was claimed."""
    champion = registry.version(record.champion_version) if record.champion_version else None
    return collect_and_build(
        settings,
        features.labelled_feedback(record.cut) if features else [],
        cut=record.cut,
        labels=registry.label_map(),
        ledger=registry,
        base=base,
        since=registry.round(champion.round_id).created_at if champion else None,
        without=registry.excluded().rows,
    )


def _judge(
    directory: Path,
    record: RoundRecord,
    dataset: Dataset,
    base: Base,
    settings: Settings,
    registry: Registry,
    store: ArtifactStore,
    progress: Progress,
    policy: Policy,
    policy_text: str,
) -> RoundReport:
    """Evaluation and gates on the exact artefact; the report is sealed into the version, so that it is judged once."""
    candidate, champion = _runtimes(directory, record, registry, store, settings)
    registry.update_round(record.round_id, step="evaluation", candidate_version=candidate.version)
    task = judged_task(settings.model.task)
    judged = evidence_and_facts.gather(
        task,
        candidate,
        champion,
        dataset,
        base,
        settings.training,
        policy,
        lambda share: progress("evaluation", share),
    )

    progress("gates", 0.0)
    look = registry.looks_since_promotion() + 1
    names = registry.label_map()
    must_pass = (
        read_rows(settings.path(settings.gates.must_pass), settings.model.task, columns_of(settings))
        if settings.gates.must_pass
        else []
    )
    must_pass = [replace(row, label=names.target(settings.model.task, row.label)) for row in must_pass]
    taught = _taught(champion, names)
    before = _renamed(_dataset_of(record.champion_version, registry), names)
    facts = evidence_and_facts.facts(
        task,
        judged,
        candidate,
        dataset,
        directory,
        policy,
        look=look,
        must_pass=must_pass,
        before=before,
        taught=taught,
    )
    verdict = gates.judge(
        judged.champion, judged.candidate, judged.probe, facts, policy, _previous_policy(record, registry)
    )
    trials = candidates.trials(round_folder(settings, record.round_id))
    verdict = verdict.model_copy(update={"results": [*verdict.results, *trials]})
    history = (directory / "history.jsonl").read_text(encoding="utf-8")
    report = round_report.build(record, judged, verdict, candidate.manifest, dataset.manifest, policy, history)
    round_report.seal(directory, report, candidate.manifest, policy_text)
    round_report.write(round_folder(settings, record.round_id), report)
    return report


def _runtimes(
    directory: Path, record: RoundRecord, registry: Registry, store: ArtifactStore, settings: Settings
) -> tuple[Loaded, Loaded | None]:
    """Candidate and champion, as they would be served but for the threads."""
    threads = evaluation_threads(settings.training)
    candidate = open_version(directory, threads=threads)
    champion, digest = _champion(record, registry, store, settings)
    if champion is None:
        return candidate, None
    loaded = open_version(champion, digest, threads=threads)
    labels = registry.label_map().outputs(loaded.manifest.labels)
    loaded.manifest = loaded.manifest.model_copy(update={"labels": labels})
    if loaded.manifest.task != settings.model.task:
        told = f"the champion {loaded.version} is of {loaded.manifest.task}, model.task is {settings.model.task}"
        raise ValueError(f"{told}: a project keeps its task, make another with `ratchet init`")
    return candidate, loaded


def _champion(
    record: RoundRecord, registry: Registry, store: ArtifactStore, settings: Settings
) -> tuple[Path | None, str | None]:
    """Verified directory and digest of the version that the round is gated against, if there is one."""
    if record.champion_version is None:
        return None, None
    digest = registry.version(record.champion_version).digest
    return store.fetch(digest, settings.path(settings.artifacts.cache)), digest


def _renamed(before: DatasetManifest | None, names: LabelMap) -> DatasetManifest | None:
    """What the champion was trained on, its labels by their present names: a rename is no drift."""
    if before is None:
        return None
    rows = Counter[str]()
    for name, n in before.rows_by_label.items():
        rows[names.current(name)] += n
    return before.model_copy(update={"rows_by_label": dict(rows)})


def _taught(champion: Loaded | None, names: LabelMap) -> frozenset[str]:
    """The labels that rows have taught the champion, by their present names."""
    manifest = champion.manifest if champion else None
    return (
        frozenset(names.current(n) for n in manifest.labels if n not in manifest.untaught_labels)
        if manifest
        else frozenset()
    )


def _dataset_of(version: str | None, registry: Registry) -> DatasetManifest | None:
    return next((known.dataset for known in registry.rounds() if version and known.candidate_version == version), None)


def _previous_policy(record: RoundRecord, registry: Registry) -> dict[str, dict[str, JsonValue]] | None:
    """What this round was judged by in an earlier attempt, or else the last round that was judged."""
    judged = (known.gate_report for known in [record, *registry.rounds()] if known.gate_report)
    return next((report.policy for report in judged if report.policy), None)


def _why(results: Sequence[GateResult]) -> str:
    stopped = [result for result in results if result.blocking and result.verdict is not Verdict.PASS]
    return "; ".join(f"{result.gate}: {result.sentence}" for result in stopped)


def _end(registry: Registry, folder: Path, round_id: str, state: RoundState, detail: str) -> RoundRecord:
    registry.finish_round(round_id, state, detail=detail)
    record = registry.round(round_id)
    atomic_write(folder / "round.json", record.model_dump_json(indent=2))
    return record


def _crash_at(step: str) -> None:
    """Where the tests pull the plug."""
    if os.environ.get("RATCHET_CRASH_AT") == step:
        os.kill(os.getpid(), signal.SIGKILL)
