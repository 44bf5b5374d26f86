"""Part search of `make bench-train`: what a hyperparameter study gains on validation and on fresh rows, per minute spent.

Three sets: Banking77 with ten rows an intent, BBC News with 25 articles a topic, and 400 long articles. Each is trained by the
default recipe and after a study of STUDY_MINUTES (5) on the same rows; both answer the same fresh rows.
"""

import os
import time

import numpy as np

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.tasks.classification import Classification
from pipelines.training.trainer import train
from schemas.configuration.training import TrainingSettings
from tests.bench.report import Figure
from tests.bench.train_data import all_threads, answers, bank_rows, few, over_seeds, right
from tests.bench.train_rounds import articles, split

MINUTES = float(os.environ.get("STUDY_MINUTES", "5"))
STUDY = TrainingSettings(search="optuna", search_minutes=MINUTES, search_trials=100)


def measure() -> list[Figure]:
    """Points of accuracy that the study gains."""
    all_threads()
    bank, rest = few(bank_rows("train"), 12, seed=0)
    news, long = articles(60), articles(150)
    ten = split(bank, len(bank) * 10 // 12, len(bank) * 2 // 12)
    sets: dict[str, tuple[list[list[Example]], int]] = {
        "Banking77, 10 an intent": ([*ten, rest[:1500]], 64),
        "BBC News, 60 words, 25 a topic": (split(news, 125, 60, 1500), 128),
        "BBC News, 150 words, 80 a topic": (split(long, 400, 100, 1000), 256),
    }
    return [figure for name, (parts, most) in sets.items() for figure in _compare(name, parts, most)]


def _compare(name: str, parts: list[list[Example]], most: int) -> list[Figure]:
    own, held, fresh = parts
    labels = sorted({row.label for row in [*own, *held, *fresh]})
    task, encoder = Classification(labels), Encoder(base_model_path(None), most)
    hits, minutes, gain = [], [], 0.0
    for settings in (TrainingSettings(), STUDY):
        began = time.perf_counter()
        trained = train(task, encoder, own, held, settings, lambda *_: None)
        minutes.append((time.perf_counter() - began) / 60)
        hits.append(right(answers(task, encoder, trained.model, fresh, settings), fresh, labels) * np.float64(100))
        ends = [line for line in trained.history if line["phase"] == "hyperparameters" and "gain" in line]
        gain = float(ends[0]["gain"]) if ends else 0.0
        print(f"{name}, {settings.search}: {hits[-1].mean():.2f} after {minutes[-1]:.1f} minutes; {ends}", flush=True)
    spent = max(1e-9, minutes[1] - minutes[0])
    points = hits[1] - hits[0]
    return [
        Figure(
            figure=f"search: {name}: points of accuracy on fresh rows, after {spent:.1f} minutes of study",
            value=float(points.mean()),
            op=">=",
            target=0.0,
            n=len(fresh),
            interval=over_seeds([points]),
            baseline=float(hits[0].mean()),
        ),
        Figure(
            figure=f"search: {name}: validation NLL gained by the best trial, a minute",
            value=gain / spent,
            op=">=",
            target=0.0,
            n=len(held),
        ),
    ]
