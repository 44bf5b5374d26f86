"""The candidate: a round's dataset becomes a model version, in a directory whose manifest is written last.

training_round.py asks for it and judges what comes; what each step does is training/, compression.py and calibration.py.
It deliberately knows no registry, and no verdict but one: what may stand in for full precision.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipelines.compression import distillation, export
from pipelines.dataset.build import Dataset
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evaluators import evaluation_threads, judged_task
from pipelines.gates import compressed
from pipelines.gates.policy import Policy
from pipelines.models.base_models import Base, base_name
from pipelines.models.decoder import Decoder, save
from pipelines.models.encoder import Encoder
from pipelines.training.history import History, Progress
from pipelines.training.tasks.choose import task_for
from pipelines.training.trainer import train
from pipelines.training.warm_start import CannotContinue, Champion, open_champion
from schemas.labels import LabelMap
from schemas.manifests import Calibration, Golden, ModelManifest
from schemas.records import Pace, RoundRecord
from schemas.reports import GateResult
from schemas.settings import Settings
from schemas.targets import Task, labels_of
from serving.inference.encoder_runtime import Runtime
from serving.inference.loading import open_version
from serving.model_directory import ArtifactDamaged, verify, write_manifest

log = logging.getLogger("ratchet.candidates")

GOLDEN_ROWS = 8
TOLERANCES = {"fp32": 1e-3, "bf16": 0.5, "int8": 1e-2}  # of golden outputs: processors differ in how they add products
TRIALS = "compression.json"
TRAFFIC_TEXTS = 5000  # of recent predictions, that a student learns from beside the round's own


def make(
    record: RoundRecord,
    dataset: Dataset,
    base: Base,
    settings: Settings,
    folder: Path,
    progress: Callable[[str, float, Pace | None], None],
    traffic: Callable[[int], Sequence[str]],
    policy: Policy,
    champion: Path | None = None,
    names: LabelMap | None = None,
) -> Path:
    """The candidate's directory, below the round's `folder`; as it is if an earlier attempt finished it.

    Trained, merged, exported, calibrated, and compressed if a smaller artefact stands in for full precision: of those that
    do, the fastest. A model that writes is kept as it is. `traffic` gives so many texts of recent predictions. `policy` says
    how far a smaller artefact may differ. `champion` is the verified directory of the version that it goes on from or that
    teaches it, where the settings say so; `names` says what its labels are called now.
    """
    target = folder / "version"
    if _is_finished(target, dataset):
        return target
    full = folder / "full"
    if not _is_finished(full, dataset):
        told = partial(progress, "training")
        before = _before(champion, base.sha256, settings, names or LabelMap())
        _full_precision(full, record, dataset, base, settings, told, before)
    chosen, tried = full, []
    if settings.serving.artifact == "auto" and isinstance(base, Encoder):
        smaller = [folder / "int8"]
        _compress(full, full / "model.onnx", smaller[0], "int8", dataset, settings)
        if settings.training.makes_student:
            smaller.append(folder / "student")
            if not _is_finished(smaller[1], dataset):
                told = partial(progress, "distillation")
                _distil(full, smaller[1], _unjudged(traffic(TRAFFIC_TEXTS), dataset), dataset, base, settings, told)
        tried = [compressed.stand_in(Runtime(full), Runtime(path), dataset.judge, policy) for path in smaller]
        passed = [(trial.seconds, path) for trial, path in zip(tried, smaller, strict=True) if trial.passed]
        chosen = min(passed)[1] if passed else full
    (folder / TRIALS).write_text(
        json.dumps([trial.result.model_dump(mode="json") for trial in tried]), encoding="utf-8"
    )
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
    base: Base,
    settings: Settings,
    progress: Progress,
    opened: tuple[Champion | None, History],
) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    base_sha256 = base.sha256
    before, note = opened
    trained = train(
        task_for(settings.model.task, dataset.labels, [*dataset.train, *dataset.validation]),
        base,
        dataset.train,
        dataset.validation,
        settings.training,
        progress,
        rejections=dataset.rejections,
        champion=before,
    )
    # a probe is fitted afresh, whatever the champion knows
    goes_on = settings.training.start == "champion" and trained.method in ("lora", "full")
    if isinstance(base, Decoder):
        artifact = save(trained.model, base, target)
    else:
        artifact = "fp32"
        export.save_weights(trained.model, target)
        export.export(trained.model, base, target)
    (target / "dataset.json").write_text(dataset.manifest.model_dump_json(indent=2), encoding="utf-8")
    (target / "history.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*note, *trained.history]), encoding="utf-8"
    )
    manifest = ModelManifest(
        model_version=f"{record.created_at:%Y%m%d-%H%M%S}-{record.round_id[-6:]}",
        model_name=settings.model.name,
        task=settings.model.task,
        labels=dataset.labels,
        untaught_labels=_untaught(dataset, settings.model.task, before if goes_on else None),
        base_model=base_name(settings.model),
        base_model_sha256=base_sha256,
        max_length=settings.model.max_length,
        max_new_tokens=settings.model.max_new_tokens,
        parent_version=record.champion_version,
        round_id=record.round_id,
        dataset_fingerprint=dataset.manifest.fingerprint,
        method=trained.method,
        artifact=artifact,
        seed=settings.training.seed,
        code_version=code_version(),
        calibration=Calibration(),
        golden=Golden(texts=[], probabilities=[], tolerance=TOLERANCES[artifact]),
        files={},
    )
    write_manifest(target, manifest)
    _calibrate(target, manifest, dataset.calibration, [row.text for row in dataset.train[:GOLDEN_ROWS]], settings)


def _before(
    champion: Path | None, base_sha256: str, settings: Settings, names: LabelMap
) -> tuple[Champion | None, History]:
    """The champion as training sees it, if the settings ask for it and its weights can be used, and a line that says so."""
    if champion is None or (settings.training.start == "base" and not settings.training.focal_distillation):
        return None, []
    try:
        found = open_champion(champion, settings.model.task, base_sha256, settings.training)
    except CannotContinue as error:
        log.warning("training starts from the base model, without the champion: %s", error)
        return None, [{"phase": "start", "weights": "base", "why": str(error)}]
    old = found.labels
    labels = names.outputs(old)
    untaught = frozenset(new for new, name in zip(labels, old, strict=True) if name in found.untaught)
    found = replace(found, labels=labels, untaught=untaught)
    return found, [{"phase": "start", "weights": settings.training.start, "champion": found.version}]


def _untaught(dataset: Dataset, task: Task, champion: Champion | None) -> list[str]:
    """Labels of which no row has trained, neither now nor in the version whose weights went on, if one's did."""
    taught = {label for row in dataset.train for label in labels_of(task, row.label)}
    return [label for label in dataset.labels if label not in taught and not (champion and champion.knows(label))]


def _compress(full: Path, model: Path, target: Path, artifact: str, dataset: Dataset, settings: Settings) -> None:
    """The same version with an ONNX `model` as int8, calibrated anew: a calibration belongs to the exact artefact."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(full, target, ignore=shutil.ignore_patterns("manifest.json", "model.onnx"))
    export.quantise(model, target / "model.onnx")
    golden = Golden(texts=[], probabilities=[], tolerance=TOLERANCES["int8"])
    changes = {"artifact": artifact, "calibration": Calibration(), "golden": golden}
    manifest = verify(full).model_copy(update=changes)
    write_manifest(target, manifest)
    _calibrate(target, manifest, dataset.calibration, [row.text for row in dataset.train[:GOLDEN_ROWS]], settings)


def _distil(
    full: Path,
    target: Path,
    traffic: Sequence[str],
    dataset: Dataset,
    encoder: Encoder,
    settings: Settings,
    progress: Progress,
) -> None:
    """A student of the version in `full`, as int8."""
    texts = [*(row.text for row in [*dataset.train, *dataset.validation]), *traffic]
    teacher = distillation.load_teacher(full, encoder, settings.training)
    student = distillation.distil(teacher, encoder, texts, settings.training, progress)
    with tempfile.TemporaryDirectory(dir=full.parent) as exported:
        export.export(student, encoder, Path(exported))
        _compress(full, Path(exported) / "model.onnx", target, compressed.STUDENT, dataset, settings)


def _unjudged(texts: Sequence[str], dataset: Dataset) -> list[str]:
    """Texts without those that judge or calibrate: a student that learnt its teacher's answers to them would look too alike."""
    held = {row.text.casefold() for row in [*dataset.judge, *dataset.calibration]}
    return [text for text in texts if text.casefold() not in held]


def trials(folder: Path) -> list[GateResult]:
    """How the compressed artefacts of a round compared with full precision."""
    return [GateResult.model_validate(result) for result in json.loads((folder / TRIALS).read_text(encoding="utf-8"))]


def _calibrate(
    target: Path, manifest: ModelManifest, rows: Sequence[FileRow], golden: list[str], settings: Settings
) -> None:
    """Fit on the exact artefact."""
    runtime, task = open_version(target, threads=evaluation_threads(settings.training)), judged_task(manifest.task)
    (target / "manifest.json").unlink()
    fitted = task.calibrate(runtime, rows, settings.gates.sets)
    answers = task.golden(runtime, fitted, golden, manifest.golden.tolerance)
    write_manifest(target, manifest.model_copy(update={"calibration": fitted, "golden": answers}))


def code_version() -> str:
    """SHA-256 over the source files of a round and of serving, ten digits: the same code, the same version."""
    repository, total = Path(__file__).parent.parent, hashlib.sha256()
    for folder in ("schemas", "serving", "pipelines"):
        for file in sorted((repository / folder).rglob("*.py")):
            total.update(file.relative_to(repository).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:10]
