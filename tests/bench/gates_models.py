"""The models that bench/gates.py judges: trained on Banking77's training file, their answers kept for as long as code and
data stay what they are.

Turns RATCHET_BENCH_DATA into logits of calibration, judging and test rows, one set a seed. The artefacts are made as a round
makes them. It deliberately looks at the test file only to answer it.
"""

import csv
import hashlib
import os
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.compression import export
from pipelines.dataset.examples import Example
from pipelines.dataset.files import FileRow
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.tasks.classification import Classification
from pipelines.training.trainer import train
from schemas.configuration.training import TrainingSettings
from serving.inference.encoder_runtime import Runtime
from serving.model_directory import write_manifest
from tests.support.manifests import manifest

SEEDS = 5
TRAIN, JUDGE, CALIBRATE_A_LABEL = 2000, 2000, 13
MAX_LENGTH = 64
KEPT = Path(".bench-gates")


@dataclass(frozen=True)
class Answers:
    """Logits [n, k] of one seed's artefact, and the truth [n], by split: calibration, judge, test."""

    labels: list[str]
    logits: dict[str, NDArray[np.float64]]
    truth: dict[str, NDArray[np.int64]]


def rows_of(name: str) -> list[FileRow]:
    """Rows of one of Banking77's files."""
    folder = os.environ.get("RATCHET_BENCH_DATA")
    if not folder:
        sys.exit("set RATCHET_BENCH_DATA to the folder of Banking77's train.csv and test.csv")
    with (Path(folder) / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return [FileRow(row["text"], row["category"]) for row in csv.DictReader(file)]


def split(seed: int) -> dict[str, list[FileRow]]:
    """2,000 rows to train on; of the rest 13 a label calibrate and 2,000 judge.

    Calibration rows are fair for the test file, which holds every label equally often; the training file does not.
    """
    unique = list({row.text: row for row in rows_of("train")}.values())
    random.Random(seed).shuffle(unique)
    spare: dict[str, list[FileRow]] = defaultdict(list)
    for row in unique[TRAIN:]:
        spare[row.label].append(row)
    calibration = [row for own in spare.values() for row in own[:CALIBRATE_A_LABEL]]
    taken = {row.text for row in calibration}
    judge = [row for row in unique[TRAIN:] if row.text not in taken][:JUDGE]
    return {"train": unique[:TRAIN], "calibration": calibration, "judge": judge, "test": rows_of("test")}


def answers(seed: int) -> Answers:
    """What seed's artefact says; trained now unless it was before."""
    kept = KEPT / f"{_key()}-{seed}.npz"
    parts = split(seed)
    labels = sorted({row.label for row in parts["train"]})
    index = {label: n for n, label in enumerate(labels)}
    splits = ("calibration", "judge", "test")
    truth = {name: np.array([index[row.label] for row in parts[name]]) for name in splits}
    if not kept.exists():
        print(f"seed {seed}: training on {TRAIN} rows", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            runtime = _artefact(parts["train"], labels, seed, Path(scratch))
            found = {name: runtime.logits([row.text for row in parts[name]]) for name in splits}
        KEPT.mkdir(exist_ok=True)
        beside = kept.with_suffix(".tmp.npz")
        np.savez_compressed(beside, **found)  # type: ignore[arg-type]  # names to arrays
        beside.rename(kept)
    with np.load(kept) as found_before:
        return Answers(labels, {name: found_before[name] for name in splits}, truth)


def _artefact(rows: list[FileRow], labels: list[str], seed: int, folder: Path) -> Runtime:
    encoder = Encoder(base_model_path(None), MAX_LENGTH)
    examples = [Example(text=row.text, label=row.label, source="seed") for row in rows]
    spared = len(examples) * 15 // 100
    settings = TrainingSettings(seed=seed, tfidf=False)
    trained = train(Classification(labels), encoder, examples[spared:], examples[:spared], settings, lambda *_: None)
    missing = Counter(labels) - Counter({row.label for row in rows})
    print(f"seed {seed}: {trained.method}, {len(missing)} labels without rows", flush=True)
    target = folder / "version"
    target.mkdir()
    export.export(trained.model, encoder, target)
    filled = manifest(f"bench-{seed}", model_name="bench", labels=labels, max_length=MAX_LENGTH, method=trained.method)
    write_manifest(target, filled)
    return Runtime(target, threads=os.cpu_count() or 1)


def _key() -> str:
    """Changes with the data and with the code that trains."""
    total = hashlib.sha256()
    for file in sorted(Path("pipelines/training").glob("*.py")):
        total.update(file.read_bytes())
    for name in ("train", "test"):
        total.update((Path(os.environ["RATCHET_BENCH_DATA"]) / f"{name}.csv").read_bytes())
    return total.hexdigest()[:12]


def forget() -> None:
    """Train anew next time."""
    shutil.rmtree(KEPT, ignore_errors=True)
