"""The round: from claimed to promoted, rejected or short of evidence.

`run_round` is the walk's steps 5 to 8 in one straight line; the command line runs it in a process of its own. Steps never
call each other. It deliberately does not decide when to run: that is the scheduler's.

Resumable: a killed round is started again. Its dataset is the same, because the cut was fixed when it was claimed; a version
directory whose manifest.json stands is not trained again; promotion is one transaction, and a no-op the second time.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines import calibration, compression, evaluation, gates
from pipelines.dataset.build import Dataset, Example, build
from pipelines.dataset.files import FileRow, read_rows
from pipelines.evaluation import Evidence
from pipelines.features import FeedbackRow
from pipelines.training.model import Encoder, base_model_path, base_model_sha256
from pipelines.training.trainer import probe_logits, train
from schemas.artifacts import Calibration, Champion, GateResult, Golden, ModelManifest, RoundRecord, RoundState, Verdict
from schemas.settings import Settings
from serving import calibration as applied
from serving.artifacts import ArtifactDamaged, ArtifactStore, verify, write_manifest
from serving.registry import ChampionMoved, Registry
from serving.runtime import Runtime

log = logging.getLogger("ratchet.training_round")

Progress = Callable[[str, float], None]
GOLDEN_ROWS = 8
INT8_TOLERANCE = 1e-2  # of golden outputs: processors differ in how they add int8 products
TRIALS = "compression.json"


class Feedback(Protocol):
    """What a round asks of the feature store."""

    def labelled_feedback(self, cut: dict[str, int] | None = None) -> list[FeedbackRow]:
        """Effective feedback up to the cut."""


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
        progress: called with a step's name and its share from 0 to 1.
        announce: told of a promotion; may fail, the registry is the truth.

    Raises:
        RoundOver: the round has ended.
        StaleLease: another scheduler took over; the round stays as it is and is resumed there.

    """
    record = registry.start_round(round_id)
    folder = round_folder(settings, round_id)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(base_model_path(settings.model.base_model), settings.model.max_length)

    progress("dataset", 0.0)
    dataset = _dataset(record, settings, registry, features, encoder)
    _write_rows(folder, dataset)
    registry.update_round(round_id, step="dataset", dataset=dataset.manifest)
    _crash_at("dataset")
    present = {row.label for row in dataset.train}
    if len(present) < 2 or not dataset.judge:
        missing = "two labels to train on" if len(present) < 2 else "reference rows to judge by"
        return _end(registry, folder, round_id, RoundState.SKIPPED, f"nothing to do: without {missing}")

    directory = _version(record, dataset, encoder, settings, folder, lambda share: progress("training", share))
    _crash_at("training")

    progress("evaluation", 0.0)
    candidate = Runtime(directory)
    registry.update_round(round_id, step="evaluation", candidate_version=candidate.version)
    champion = _champion_runtime(record, registry, store, settings)
    judged = {"candidate": evaluation.evaluate(candidate, dataset.judge, split="reference")}
    judged["probe"] = _probe(dataset, encoder, settings)
    if champion is not None:
        judged["champion"] = evaluation.evaluate(champion, dataset.judge, split="reference")
    reports = {name: evidence.report for name, evidence in judged.items()}

    progress("gates", 0.0)
    policy, policy_sha256 = gates.load_policy(settings.path(settings.gates.policy).read_text())
    facts = _facts(registry, dataset, directory)
    report = gates.judge(judged.get("champion"), judged["candidate"], judged["probe"], facts, policy, policy_sha256)
    report = report.model_copy(update={"results": [*report.results, *_trials(folder)]})
    registry.update_round(round_id, step="gates", evaluations=reports, gate_report=report)
    _crash_at("gates")

    progress("promotion", 0.0)
    digest = store.put(directory)
    registry.register_version(candidate.manifest, digest, servable=report.verdict is Verdict.PASS)
    _crash_at("promotion")
    if report.verdict is not Verdict.PASS:
        state = RoundState.REJECTED if report.verdict is Verdict.FAIL else RoundState.INSUFFICIENT
        return _end(registry, folder, round_id, state, _why(report.results))
    if settings.gates.approval == "manual":
        detail = f"every gate passed; waiting for `ratchet round approve {round_id}`"
        return _end(registry, folder, round_id, RoundState.AWAITING_APPROVAL, detail)
    try:
        promoted = registry.promote(
            candidate.version, expected=record.champion_version, token=token, actor="gates", round_id=round_id
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


def training_rows(folder: Path) -> list[Example]:
    """The rows, training and validation, that a round was given."""
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [Example(**{key: value for key, value in row.items() if key != "side"}) for row in found]


def _dataset(
    record: RoundRecord, settings: Settings, registry: Registry, features: Feedback | None, encoder: Encoder
) -> Dataset:
    reference = settings.dataset.reference
    return build(
        read_rows(settings.path(settings.dataset.seed)),
        read_rows(settings.path(reference)) if reference else None,
        features.labelled_feedback(record.cut) if features else [],
        labels=registry.active_labels(),
        cut=record.cut,
        settings=settings,
        embed=encoder.embed,
        record_sides=registry.record_sides,
    )


def _write_rows(folder: Path, dataset: Dataset) -> None:
    sides = (("train", dataset.train), ("validation", dataset.validation))
    lines = [json.dumps({**asdict(row), "side": side}) for side, rows in sides for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


def _version(
    record: RoundRecord,
    dataset: Dataset,
    encoder: Encoder,
    settings: Settings,
    folder: Path,
    progress: Callable[[float], None],
) -> Path:
    """The candidate's directory: trained, merged, exported, calibrated, and compressed if it may be; as it is if an earlier
    attempt finished it.
    """
    target = folder / "version"
    if _is_finished(target, dataset):
        return target
    full = folder / "full"
    if not _is_finished(full, dataset):
        _full_precision(full, record, dataset, encoder, settings, progress)
    chosen, trials = full, []
    if settings.serving.artifact == "auto":
        small = folder / "int8"
        _compress(full, small, dataset)
        trials = [compression.stand_in(Runtime(full), Runtime(small), dataset.judge)]
        chosen = small if trials[0].passed else full
    (folder / TRIALS).write_text(json.dumps([trial.result.model_dump(mode="json") for trial in trials]))
    shutil.rmtree(target, ignore_errors=True)
    chosen.rename(target)
    return target


def _is_finished(directory: Path, dataset: Dataset) -> bool:
    try:
        found = verify(directory)
    except ArtifactDamaged:
        return False
    # Without golden outputs it is the uncalibrated first half: an earlier attempt died before it was finished.
    return bool(found.golden.texts) and found.dataset_fingerprint == dataset.manifest.fingerprint


def _full_precision(
    target: Path,
    record: RoundRecord,
    dataset: Dataset,
    encoder: Encoder,
    settings: Settings,
    progress: Callable[[float], None],
) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    base_sha256 = base_model_sha256(encoder.path)
    trained = train(encoder, dataset.train, dataset.validation, dataset.labels, settings.training, progress)
    compression.save_adapter(trained.model, target)
    compression.export(trained.model, encoder, target)
    (target / "dataset.json").write_text(dataset.manifest.model_dump_json(indent=2))
    (target / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in trained.history))
    manifest = ModelManifest(
        model_version=f"{record.created_at:%Y%m%d-%H%M%S}-{record.round_id[-6:]}",
        model_name=settings.model.name,
        task=settings.model.task,
        labels=dataset.labels,
        base_model=settings.model.base_model or "all-MiniLM-L6-v2",
        base_model_sha256=base_sha256,
        max_length=settings.model.max_length,
        parent_version=record.champion_version,
        round_id=record.round_id,
        dataset_fingerprint=dataset.manifest.fingerprint,
        method=trained.method,
        calibration=Calibration(),
        golden=Golden(texts=[], probabilities=[]),
        files={},
    )
    write_manifest(target, manifest)
    _calibrate(target, manifest, dataset.calibration, [row.text for row in dataset.train[:GOLDEN_ROWS]])


def _compress(full: Path, target: Path, dataset: Dataset) -> None:
    """The same version with an int8 model, calibrated anew: a calibration belongs to the exact artefact."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(full, target, ignore=shutil.ignore_patterns("manifest.json", "model.onnx"))
    compression.quantise(full / "model.onnx", target / "model.onnx")
    golden = Golden(texts=[], probabilities=[], tolerance=INT8_TOLERANCE)
    changes = {"artifact": "int8", "calibration": Calibration(), "golden": golden}
    manifest = verify(full).model_copy(update=changes)
    write_manifest(target, manifest)
    _calibrate(target, manifest, dataset.calibration, [row.text for row in dataset.train[:GOLDEN_ROWS]])


def _trials(folder: Path) -> list[GateResult]:
    return [GateResult.model_validate(result) for result in json.loads((folder / TRIALS).read_text())]


def _calibrate(target: Path, manifest: ModelManifest, rows: Sequence[FileRow], golden: list[str]) -> None:
    """Fit on the exact artefact: the logarithms of its uncalibrated probabilities are its logits, up to a constant."""
    runtime = Runtime(target)
    (target / "manifest.json").unlink()
    index = {label: n for n, label in enumerate(manifest.labels)}
    known = [row for row in rows if row.label in index]
    fitted = Calibration()
    if known:
        logits = np.log(np.clip(runtime.probabilities([row.text for row in known]), 1e-30, 1))
        fitted = calibration.fit(logits, np.array([index[row.label] for row in known]))
    raw = np.log(np.clip(runtime.probabilities(golden), 1e-30, 1))
    answers = manifest.golden.model_copy(update={"texts": golden, "probabilities": applied.apply(fitted, raw).tolist()})
    write_manifest(target, manifest.model_copy(update={"calibration": fitted, "golden": answers}))


def _champion_runtime(
    record: RoundRecord, registry: Registry, store: ArtifactStore, settings: Settings
) -> Runtime | None:
    if record.champion_version is None:
        return None
    digest = registry.version(record.champion_version).digest
    return Runtime(store.fetch(digest, settings.path(settings.artifacts.cache)), digest)


def _probe(dataset: Dataset, encoder: Encoder, settings: Settings) -> Evidence:
    rows = [*dataset.train, *dataset.validation]
    logits = probe_logits(encoder, rows, dataset.labels, [row.text for row in dataset.judge], settings.training)
    probabilities = applied.apply(Calibration(), logits)
    return evaluation.score(probabilities, dataset.labels, dataset.judge, version="probe", split="reference")


def _facts(registry: Registry, dataset: Dataset, directory: Path) -> gates.Candidate:
    people = {row.person for row in [*dataset.train, *dataset.validation] if row.person}
    quarantined = dataset.manifest.quarantined_people
    commonest = Counter(row.label for row in dataset.judge).most_common(1)[0][1]
    latency, error = _try_in_fresh_process(directory)
    return gates.Candidate(
        look=registry.looks_since_promotion() + 1,
        people=len(people | set(quarantined)),
        quarantined=len(quarantined),
        majority_share=commonest / len(dataset.judge),
        latency_ms=latency,
        load_error=error,
    )


def _try_in_fresh_process(directory: Path) -> tuple[float | None, str | None]:
    repository = Path(__file__).parent.parent
    command = [sys.executable, "-m", "serving.runtime", str(directory)]
    try:
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return None, "the artefact did not load and answer within 120 s in a fresh process"
    if done.returncode:
        return None, f"the artefact does not load in a fresh process: {done.stderr.strip().splitlines()[-1:]}"
    return float(done.stdout.strip().splitlines()[-1]), None


def _why(results: Sequence[GateResult]) -> str:
    stopped = [result for result in results if result.blocking and result.verdict is not Verdict.PASS]
    return "; ".join(f"{result.gate}: {result.sentence}" for result in stopped)


def _end(registry: Registry, folder: Path, round_id: str, state: RoundState, detail: str) -> RoundRecord:
    registry.finish_round(round_id, state, detail=detail)
    record = registry.round(round_id)
    (folder / "report.json").write_text(record.model_dump_json(indent=2))
    return record


def _crash_at(step: str) -> None:
    """Where the tests pull the plug."""
    if os.environ.get("RATCHET_CRASH_AT") == step:
        os.kill(os.getpid(), signal.SIGKILL)
