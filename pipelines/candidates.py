"""The candidate: a round's dataset becomes a model version, in a directory whose manifest is written last.

training_round.py calls `make`, then judges the version. The steps are in training/, compression/ and evaluation/; the only
verdict used here is gates/compressed.py, on whether a smaller artefact may serve.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.compression import distillation, export
from pipelines.compression.tfidf_graph import export_tfidf
from pipelines.dataset.build import Dataset
from pipelines.evaluation.answer_rule import AnswerRule
from pipelines.evaluation.evaluators import evaluation_threads, evaluator_for
from pipelines.gates import compressed
from pipelines.models.base_models import Base, base_name
from pipelines.models.decoder import Decoder, save
from pipelines.models.encoder import Encoder
from pipelines.models.tfidf import TfidfModel
from pipelines.round_inputs import RoundInputs
from pipelines.training.history import History, TrainingProgress
from pipelines.training.tasks.choose import task_for
from pipelines.training.trainer import Trained, train
from pipelines.training.warm_start import CannotContinue, WarmStart, open_warm_start
from schemas.manifests import Calibration, Golden, ModelManifest
from schemas.reports import GateResult
from schemas.settings import Settings
from schemas.targets import Task, labels_of
from serving.inference.encoder_runtime import Runtime
from serving.inference.loading import open_version
from serving.inference.normalise import NORMALISER, folded
from serving.model_directory import ArtifactDamaged, verify, write_manifest

log = logging.getLogger("ratchet.candidates")

GOLDEN_ROWS = 8
RANGE_TEXTS = 256  # that fix the ranges of int8 activations
TOLERANCES = {"fp32": 1e-3, "bf16": 0.5, "int8": 1e-2}  # of golden outputs: processors add products in different orders
TRIALS = "compression.json"
TRAFFIC_TEXTS = 5000  # recent predictions, on which a student learns beside the round's own rows


def make(inputs: RoundInputs, dataset: Dataset, champion: Path | None) -> Path:
    """Return the candidate's directory in the round's folder; a finished one of an earlier attempt is kept.

    Trains, exports and calibrates the full-precision model. For an encoder with `serving.artifact = "auto"` also makes the
    smaller artefacts, and chooses the fastest that the policy accepts instead of full precision.

    Args:
        inputs: of the round.
        dataset: of the round.
        champion: its verified directory, for a warm start or distillation where the settings ask for them.

    """
    folder = inputs.folder
    target, full = folder / "version", folder / "full"
    if _is_finished(target, dataset):
        return target
    if not _is_finished(full, dataset):
        _make_full_precision(full, inputs, dataset, champion)
    chosen, judged = full, []
    wanted = inputs.settings.serving.artifact == "auto" and verify(full).kind == "transformer"
    if wanted and isinstance(inputs.base, Encoder):
        smaller = _make_smaller(full, inputs, dataset, inputs.base)
        judged = [
            compressed.try_compressed(
                Runtime(full), Runtime(path), dataset.reference, inputs.policy, cross_fitted(inputs, dataset)
            )
            for path in smaller
        ]
        passed = [(trial.seconds, path) for trial, path in zip(judged, smaller, strict=True) if trial.passed]
        chosen = min(passed)[1] if passed else full
    results = [trial.result.model_dump(mode="json") for trial in judged]
    (folder / TRIALS).write_text(json.dumps(results), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    chosen.rename(target)
    return target


def cross_fitted(inputs: RoundInputs, dataset: Dataset) -> AnswerRule | None:
    """Return the answer rule if the reference rows fit the calibration too, and so have to be judged by cross-fitting."""
    return None if dataset.calibration else inputs.rule


def trials(folder: Path) -> list[GateResult]:
    """Return how a round's smaller artefacts compared with full precision."""
    return [GateResult.model_validate(result) for result in json.loads((folder / TRIALS).read_text(encoding="utf-8"))]


def _is_finished(directory: Path, dataset: Dataset) -> bool:
    try:
        manifest = verify(directory)
    except ArtifactDamaged:
        return False
    # Golden outputs are written last: without them an earlier attempt died before the calibration.
    return bool(manifest.golden.texts) and manifest.dataset_fingerprint == dataset.manifest.fingerprint


def _make_full_precision(target: Path, inputs: RoundInputs, dataset: Dataset, champion: Path | None) -> None:
    settings, base = inputs.settings, inputs.base
    warm_start, note = _open_warm_start(champion, inputs)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    trained = train(
        task_for(settings.model.task, dataset.labels, [*dataset.train, *dataset.validation]),
        base,
        dataset.train,
        dataset.validation,
        settings.training,
        partial(inputs.progress, "training"),
        rejections=dataset.rejections,
        champion=warm_start,
    )
    artifact = _write_model(trained.model, base, target)
    (target / "dataset.json").write_text(dataset.manifest.model_dump_json(indent=2), encoding="utf-8")
    lines = [json.dumps(line) + "\n" for line in [*note, *trained.history]]
    (target / "history.jsonl").write_text("".join(lines), encoding="utf-8")
    manifest = _manifest(inputs, dataset, trained, artifact, warm_start)
    write_manifest(target, manifest)
    _calibrate(target, manifest, dataset, settings, inputs.rule)


def _write_model(model: Any, base: Base, target: Path) -> str:
    """Write the files that serving loads, and the weights that a warm start loads; return the precision."""
    if isinstance(base, Decoder):
        return save(model, base, target)
    if isinstance(model, TfidfModel):
        export_tfidf(model, target)
    else:
        export.save_weights(model, target)
        export.export(model, base, target)
    return "fp32"


def _manifest(
    inputs: RoundInputs, dataset: Dataset, trained: Trained, artifact: str, warm_start: WarmStart | None
) -> ModelManifest:
    """Return the manifest of a version that is not calibrated yet."""
    record, settings = inputs.record, inputs.settings
    # A probe is fitted on this round's rows alone, so it keeps nothing of what the champion learnt.
    continued = settings.training.start == "champion" and trained.method in ("lora", "full")
    return ModelManifest(
        model_version=f"{record.created_at:%Y%m%d-%H%M%S}-{record.round_id[-6:]}",
        model_name=settings.model.name,
        task=settings.model.task,
        labels=dataset.labels,
        untaught_labels=_untaught(dataset, settings.model.task, warm_start if continued else None),
        base_model=base_name(settings.model),
        base_model_sha256=inputs.base.sha256,
        max_length=settings.model.max_length,
        max_new_tokens=settings.model.max_new_tokens,
        parent_version=record.champion_version,
        round_id=record.round_id,
        dataset_fingerprint=dataset.manifest.fingerprint,
        method=trained.method,
        kind="tfidf" if trained.method == "tfidf" else "transformer",
        normaliser=NORMALISER,
        artifact=artifact,
        seed=settings.training.seed,
        code_version=code_version(),
        calibration=Calibration(),
        golden=Golden(texts=[], probabilities=[], tolerance=TOLERANCES[artifact]),
        files={},
    )


def _open_warm_start(champion: Path | None, inputs: RoundInputs) -> tuple[WarmStart | None, History]:
    """Return the champion as training uses it, under current label names, and a history line.

    None if the settings do not ask for it, or if its weights cannot be used: the line then says why.
    """
    training = inputs.settings.training
    if champion is None or (training.start == "base" and not training.focal_distillation):
        return None, []
    try:
        opened = open_warm_start(champion, inputs.settings.model.task, inputs.base.sha256, training)
    except CannotContinue as error:
        log.warning("training starts from the base model, without the champion: %s", error)
        return None, [{"phase": "start", "weights": "base", "why": str(error)}]
    labels = inputs.registry.label_map().outputs(opened.labels)
    untaught = frozenset(new for new, old in zip(labels, opened.labels, strict=True) if old in opened.untaught)
    note: History = [{"phase": "start", "weights": training.start, "champion": opened.version}]
    return replace(opened, labels=labels, untaught=untaught), note


def _untaught(dataset: Dataset, task: Task, warm_start: WarmStart | None) -> list[str]:
    """Return the labels without training rows, in this round and in the version that it continues."""
    taught = {label for row in dataset.train for label in labels_of(task, row.label)}
    return [name for name in dataset.labels if name not in taught and not (warm_start and warm_start.knows(name))]


def _make_smaller(full: Path, inputs: RoundInputs, dataset: Dataset, encoder: Encoder) -> list[Path]:
    """Return the directories of the int8 version and, if the settings ask for one, of the student."""
    int8, student = full.with_name("int8"), full.with_name("student")
    _compress(full, full / "model.onnx", int8, "int8", dataset, inputs.settings, inputs.rule)
    if not inputs.settings.training.makes_student:
        return [int8]
    if not _is_finished(student, dataset):
        traffic = _without_judging_rows(inputs.recent_texts(TRAFFIC_TEXTS), dataset)
        progress = partial(inputs.progress, "distillation")
        make_student(full, student, traffic, dataset, encoder, inputs.settings, progress, inputs.rule)
    return [int8, student]


def _compress(
    full: Path, model: Path, target: Path, artifact: str, dataset: Dataset, settings: Settings, rule: AnswerRule
) -> None:
    """Write the version again with an ONNX `model` as int8, and calibrate that artefact."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(full, target, ignore=shutil.ignore_patterns("manifest.json", "model.onnx"))
    export.quantise(model, target / "model.onnx", Runtime(full).encode(_range_texts(dataset)))
    golden = Golden(texts=[], probabilities=[], tolerance=TOLERANCES["int8"])
    changes = {"artifact": artifact, "calibration": Calibration(), "golden": golden}
    manifest = verify(full).model_copy(update=changes)
    write_manifest(target, manifest)
    _calibrate(target, manifest, dataset, settings, rule)


def make_student(
    full: Path,
    target: Path,
    traffic: Sequence[str],
    dataset: Dataset,
    encoder: Encoder,
    settings: Settings,
    progress: TrainingProgress,
    rule: AnswerRule,
) -> None:
    """Distil the version in `full` on the round's rows and on `traffic` texts, and write the student as int8."""
    texts = [*(row.text for row in [*dataset.train, *dataset.validation]), *traffic]
    teacher = distillation.load_teacher(full, encoder, settings.training)
    student = distillation.distil(teacher, encoder, texts, settings.training, progress)
    with tempfile.TemporaryDirectory(dir=full.parent) as exported:
        export.export(student, encoder, Path(exported))
        _compress(full, Path(exported) / "model.onnx", target, compressed.STUDENT, dataset, settings, rule)


def _range_texts(dataset: Dataset) -> list[str]:
    """Return RANGE_TEXTS training texts of all lengths, the shortest and the longest too."""
    texts = sorted((row.text for row in dataset.train), key=len)
    count = min(len(texts), RANGE_TEXTS)
    return [texts[n * (len(texts) - 1) // max(1, count - 1)] for n in range(count)]


def _without_judging_rows(texts: Sequence[str], dataset: Dataset) -> list[str]:
    """Return texts that neither judge nor calibrate: on those a student would imitate its teacher too well."""
    held_out = {folded(row.text) for row in [*dataset.reference, *dataset.calibration]}
    return [text for text in texts if folded(text) not in held_out]


def _calibrate(target: Path, manifest: ModelManifest, dataset: Dataset, settings: Settings, rule: AnswerRule) -> None:
    """Fit the calibration on the exact artefact, and write the manifest again with it and with golden outputs."""
    texts = [row.text for row in dataset.train[:GOLDEN_ROWS]]
    runtime, task = open_version(target, threads=evaluation_threads(settings.training)), evaluator_for(manifest.task)
    (target / "manifest.json").unlink()
    calibration = task.calibrate(runtime, dataset.calibrating, rule)
    golden = task.golden(runtime, calibration, texts, manifest.golden.tolerance)
    write_manifest(target, manifest.model_copy(update={"calibration": calibration, "golden": golden}))


def code_version() -> str:
    """Return ten digits of the SHA-256 over the source files of training and serving."""
    repository, total = Path(__file__).parent.parent, hashlib.sha256()
    for folder in ("schemas", "serving", "pipelines"):
        for file in sorted((repository / folder).rglob("*.py")):
            total.update(file.relative_to(repository).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:10]
