"""What bench/train.py trains on: Banking77 cut into rows, the same for everybody in a run.

Turns RATCHET_BENCH_DATA into examples, and a trained model into answers. The test file is read in `test_rows` alone.
"""

import csv
import os
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder
from pipelines.models.tfidf import TfidfModel
from pipelines.training.fitting import outputs_of
from pipelines.training.tasks.task import TrainingTask
from schemas.configuration.training import TrainingSettings

MAX_LENGTH = 64
Floats = NDArray[np.float64]


def bank_rows(name: str) -> list[Example]:
    """Rows of one of Banking77's files, each text once."""
    folder = os.environ.get("RATCHET_BENCH_DATA")
    if not folder:
        sys.exit("set RATCHET_BENCH_DATA to the folder of Banking77's train.csv and test.csv")
    with (Path(folder) / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["text"]: row["category"] for row in csv.DictReader(file)}
    return [Example(text=text, label=label, source="seed") for text, label in rows.items()]


def by_label(rows: Sequence[Example], seed: int) -> dict[str, list[Example]]:
    """Rows of each label, shuffled."""
    draw, found = random.Random(seed), defaultdict(list)
    for row in rows:
        found[row.label].append(row)
    for own in found.values():
        draw.shuffle(own)
    return dict(sorted(found.items()))


def few(rows: Sequence[Example], each: int, seed: int) -> tuple[list[Example], list[Example]]:
    """`each` rows of every label, and the others."""
    parts = by_label(rows, seed).values()
    return [row for own in parts for row in own[:each]], [row for own in parts for row in own[each:]]


def answers(
    task: TrainingTask, encoder: Encoder, model: Any, rows: Sequence[Example], settings: TrainingSettings
) -> Any:
    """Outputs [n, k] of a trained model."""
    if isinstance(model, TfidfModel):
        return model.outputs([row.text for row in rows])
    numbered = task.rows(encoder, rows, settings)
    with numbered.inputs.feeding(model.eval()) as forward:
        return outputs_of(task, forward, numbered, range(len(rows)))


def right(outputs: NDArray[Any], rows: Sequence[Example], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each row's label has the largest output: [n]."""
    return np.array([labels[n] == row.label for n, row in zip(outputs.argmax(axis=1), rows, strict=True)])


def over_seeds(gains: Sequence[Floats], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a mean of paired differences [n] by seed: seeds and, in each the same, rows are drawn again."""
    table, draw = np.stack(gains), np.random.default_rng(0)
    seeds, rows = table.shape
    means = [table[draw.integers(seeds, size=seeds)][:, draw.integers(rows, size=rows)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def all_threads() -> None:
    """Torch takes every core."""
    torch.set_num_threads(os.cpu_count() or 1)
