"""The training round: from claimed to promoted, rejected, settling or short of evidence.

`run_round` calls the steps in order; steps never call each other. services/rounds/process.py runs it in a process of its own.
When a round is due is decided in triggers.py.

A killed round resumes. Its dataset is the same, because the cut was fixed when the round was claimed. A finished version
directory is not trained again, and a sealed report is not judged again, even if the policy changed. Promotion is one
transaction, and has no effect the second time.
"""

from collections.abc import Callable
from pathlib import Path

from pipelines import candidates, round_settling
from pipelines.before_training import reason_to_skip
from pipelines.dataset.build import Dataset
from pipelines.dataset.project_dataset import write_rows
from pipelines.dataset.report.write import write_report
from pipelines.gates import approval
from pipelines.report import mlflow_tracking, round_report
from pipelines.round_file import write_round_file
from pipelines.round_inputs import Feedback, RoundInputs, RoundProgress, collect_dataset, open_inputs
from pipelines.round_judgement import judge
from schemas.manifests import ModelManifest
from schemas.records import Champion, RoundRecord, RoundState
from schemas.reports import GateReport, RoundReport, Verdict
from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.model_directory import read_manifest
from serving.process.crash_points import crash_at
from serving.registry.registry import ChampionMoved, Registry
from serving.registry.safeguards.marker import check


def run_round(
    round_id: str,
    *,
    settings: Settings,
    registry: Registry,
    store: ArtifactStore,
    features: Feedback | None,
    token: int | None,
    progress: RoundProgress,
    announce: Callable[[Champion], None] | None = None,
) -> RoundRecord:
    """Run a claimed round, or resume one that died, and return its record: final, awaiting approval or settling.

    Args:
        round_id: a claimed or running round.
        settings: the project's settings.
        registry: keeps the round's state and verdict.
        store: keeps the candidate.
        features: source of feedback; None before there is any.
        token: fencing token of the scheduler's lease; None when a person runs the round.
        progress: receives a step's name, its completed share from 0 to 1 and, while training, the pace.
        announce: receives the promotion.

    Raises:
        RoundOver: the round has ended.
        RegistryLost: the registry is not the one that promoted the versions in the store.
        StaleLease: another scheduler took over; it resumes the round.

    """
    check(registry, store)
    inputs = open_inputs(registry.start_round(round_id), settings, registry, store, features, progress)
    dataset = _build_dataset(inputs)
    crash_at("dataset")
    if reason := reason_to_skip(inputs, dataset):
        return _end(inputs, RoundState.SKIPPED, reason)
    directory = candidates.make(inputs, dataset, inputs.champion()[0])
    crash_at("training")
    report = round_report.sealed(directory)
    if report is None:
        report = judge(inputs, dataset, directory)
    elif report.champion_version != (current := inputs.record.champion_version):
        return _end(
            inputs, RoundState.REJECTED, f"judged against {report.champion_version}; the champion is {current} now"
        )
    registry.update_round(round_id, step="gates", evaluations=report.evaluations, gate_report=report.gate_report)
    crash_at("gates")
    version = _register(inputs, directory, report)
    crash_at("promotion")
    if settling := round_settling.plan(inputs, report.gate_report):
        return _stored(inputs, registry.begin_settling(round_id, settling))
    if ending := _ending_without_promotion(inputs, report.gate_report):
        return _end(inputs, *ending)
    return _promote(inputs, version, token, announce)


def _build_dataset(inputs: RoundInputs) -> Dataset:
    """Return the round's dataset, after writing its rows and its report into the round's folder."""
    inputs.progress("dataset", 0.0)
    dataset = collect_dataset(inputs)
    write_rows(inputs.folder, dataset)
    write_report(inputs.folder, dataset, inputs.settings, inputs.registry, inputs.features, inputs.base)
    inputs.registry.update_round(inputs.record.round_id, step="dataset", dataset=dataset.manifest)
    return dataset


def _register(inputs: RoundInputs, directory: Path, report: RoundReport) -> str:
    """Return the candidate's version name, after storing, registering and logging the sealed version."""
    inputs.progress("promotion", 0.0)
    manifest, sealed = read_manifest(directory), round_report.sealed_folder(directory)
    digest = inputs.store.put(sealed)
    inputs.registry.update_round(
        inputs.record.round_id,
        approvals_needed=approval.of(report.gate_report).people,
        approval_reasons=_reasons_for_approval(inputs, report, manifest),
    )
    inputs.registry.register_version(manifest, digest, servable=report.gate_report.verdict is Verdict.PASS)
    mlflow_tracking.log_version(inputs.settings, sealed)
    return manifest.model_version


def _ending_without_promotion(inputs: RoundInputs, gate_report: GateReport) -> tuple[RoundState, str] | None:
    """Return state and detail of a round that may not promote its candidate now; None if it may."""
    if gate_report.verdict is not Verdict.PASS:
        failed = gate_report.verdict is Verdict.FAIL
        stopped = [result for result in gate_report.results if result.blocking and result.verdict is not Verdict.PASS]
        detail = "; ".join(f"{result.gate}: {result.sentence}" for result in stopped)
        return RoundState.REJECTED if failed else RoundState.INSUFFICIENT, detail
    reasons = inputs.registry.round(inputs.record.round_id).approval_reasons
    if reasons or inputs.settings.gates.approval == "manual":
        waits = f"every gate passed; waiting for `ratchet round approve {inputs.record.round_id}`"
        return RoundState.AWAITING_APPROVAL, ": ".join([waits, *(["; ".join(reasons)] if reasons else [])])
    return None


def _reasons_for_approval(inputs: RoundInputs, report: RoundReport, candidate: ModelManifest) -> list[str]:
    """Return why the policy that the candidate was judged by wants people to approve it."""
    policy = approval.of(report.gate_report)
    if not policy.when:
        return []
    folder, _ = inputs.champion()
    champion = read_manifest(folder) if folder else None
    return approval.reasons(policy, candidate, champion, report.moved_answers)


def _promote(
    inputs: RoundInputs, version: str, token: int | None, announce: Callable[[Champion], None] | None
) -> RoundRecord:
    """Promote the candidate by compare-and-swap, and return the ended round's record."""
    expected, round_id = inputs.record.champion_version, inputs.record.round_id
    try:
        promoted = inputs.registry.promote(version, expected=expected, token=token, actor="gates", round_id=round_id)
    except ChampionMoved as error:
        return _end(inputs, RoundState.REJECTED, f"passed, but {error}")
    if announce is not None:
        announce(promoted)
    inputs.progress("promotion", 1.0)
    return _end(inputs, RoundState.PROMOTED, "promoted")


def _end(inputs: RoundInputs, state: RoundState, detail: str) -> RoundRecord:
    """Return the ended round's record, after writing it into the registry and then into round.json."""
    round_id, registry = inputs.record.round_id, inputs.registry
    registry.finish_round(round_id, state, detail=detail)
    return _stored(inputs, registry.round(round_id))


def _stored(inputs: RoundInputs, record: RoundRecord) -> RoundRecord:
    """Return a record, after writing it into round.json."""
    write_round_file(inputs.settings, record)
    return record
