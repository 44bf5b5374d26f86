"""The candidate: a round's dataset becomes a model version, in a directory whose manifest is written last.

training_round.py asks for it and judges what comes; what each step does is training/, compression.py and calibration.py.
It deliberately knows no champion, no registry and no verdict but one: whether int8 may stand in for full precision.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines import compression, judging
from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow
from pipelines.evaluation import judged_task
from pipelines.policy import load_policy
from pipelines.training.model import Encoder, base_model_sha256
from pipelines.training.tasks import task_for
from pipelines.training.trainer import train
from schemas.artifacts import Calibration, GateResult, Golden, ModelManifest, RoundRecord
from schemas.settings import Settings
from serving.artifacts import ArtifactDamaged, verify, write_manifest
from serving.runtime import Runtime

GOLDEN_ROWS = 8
INT8_TOLERANCE = 1e-2  # of golden outputs: processors differ in how they add int8 products
TRIALS = "compression.json"


def make(
    record: RoundRecord,
    dataset: Dataset,
    encoder: Encoder,
    settings: Settings,
    folder: Path,
    progress: Callable[[float], None],
) -> Path:
    """The candidate's directory, below the round's `folder`; as it is if an earlier attempt finished it.

    Trained, merged, exported, calibrated, and compressed if the smaller artefact stands in for full precision.
    """
    target = folder / "version"
    if _is_finished(target, dataset):
        return target
    full = folder / "full"
    if not _is_finished(full, dataset):
        _full_precision(full, record, dataset, encoder, settings, progress)
    chosen, tried = full, []
    if settings.serving.artifact == "auto":
        small = folder / "int8"
        _compress(full, small, dataset, settings)
        policy = load_policy(settings.path(settings.gates.policy).read_text())
        tried = [compression.stand_in(Runtime(full), Runtime(small), dataset.judge, policy)]
        chosen = small if tried[0].passed else full
    (folder / TRIALS).write_text(json.dumps([trial.result.model_dump(mode="json") for trial in tried]))
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
    trained = train(
        task_for(settings.model.task, dataset.labels, [*dataset.train, *dataset.validation]),
        encoder,
        dataset.train,
        dataset.validation,
        settings.training,
        progress,
        rejections=dataset.rejections,
    )
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
        seed=settings.training.seed,
        code_version=judging.code_version(),
        calibration=Calibration(),
        golden=Golden(texts=[], probabilities=[]),
        files={},
    )
    write_manifest(target, manifest)
    _calibrate(target, manifest, dataset.calibration, [row.text for row in dataset.train[:GOLDEN_ROWS]], settings)


def _compress(full: Path, target: Path, dataset: Dataset, settings: Settings) -> None:
    """The same version with an int8 model, calibrated anew: a calibration belongs to the exact artefact."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(full, target, ignore=shutil.ignore_patterns("manifest.json", "model.onnx"))
    compression.quantise(full / "model.onnx", target / "model.onnx")
    golden = Golden(texts=[], probabilities=[], tolerance=INT8_TOLERANCE)
    changes = {"artifact": "int8", "calibration": Calibration(), "golden": golden}
    manifest = verify(full).model_copy(update=changes)
    write_manifest(target, manifest)
    _calibrate(target, manifest, dataset.calibration, [row.text for row in dataset.train[:GOLDEN_ROWS]], settings)


def trials(folder: Path) -> list[GateResult]:
    """How the compressed artefacts of a round compared with full precision."""
    return [GateResult.model_validate(result) for result in json.loads((folder / TRIALS).read_text())]


def _calibrate(
    target: Path, manifest: ModelManifest, rows: Sequence[FileRow], golden: list[str], settings: Settings
) -> None:
    """Fit on the exact artefact."""
    runtime, task = Runtime(target, threads=judging.threads(settings.training)), judged_task(manifest.task)
    (target / "manifest.json").unlink()
    fitted = task.calibrate(runtime, rows, settings.gates.sets)
    answers = task.golden(runtime, fitted, golden, manifest.golden.tolerance)
    write_manifest(target, manifest.model_copy(update={"calibration": fitted, "golden": answers}))
