"""Parts accuracy_few, accuracy_all (LoRA, the default) and full_few, full_all (all layers) of `make bench-train`.

Turns Banking77 into test accuracies of whole rounds by default settings, beside the probe on the same rows: a logistic
regression on frozen embeddings, without class names. Paired: both answer the same test rows. Published results stand beside.
"""

import time
from collections.abc import Sequence

import numpy as np

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.tasks.classification import Classification
from pipelines.training.trainer import probe_outputs, train
from schemas.configuration.training import TrainingSettings
from tests.bench.report import Figure
from tests.bench.train_data import MAX_LENGTH, all_threads, answers, bank_rows, few, over_seeds, right

EACH, VALIDATION = 10, 500
PUBLISHED = {
    "10 a label": "SetFit on MPNet 88.0, CPFT on RoBERTa 87.2, ICDA 89.8",
    "all rows": "BERT tuned 93.7, MPNet tuned 94.0",
}


def few_rows() -> list[Figure]:
    """Five draws of ten rows a label."""
    return _few(TrainingSettings())


def all_rows() -> list[Figure]:
    """Three seeds on all rows."""
    return _all(TrainingSettings())


def few_rows_full() -> list[Figure]:
    """The same rows, all layers instead of adapters."""
    return _few(TrainingSettings(method="full"))


def all_rows_full() -> list[Figure]:
    """The same rows, all layers instead of adapters."""
    return _all(TrainingSettings(method="full"))


def _few(settings: TrainingSettings) -> list[Figure]:
    rows = bank_rows("train")
    draws = [(few(rows, EACH, seed)[0], list[Example]()) for seed in range(5)]
    return _figures(f"{EACH} a label", draws, settings, least=1.0, wish=87.0)


def _all(settings: TrainingSettings) -> list[Figure]:
    rows = bank_rows("train")
    draws = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows))
        draws.append(([rows[n] for n in order[VALIDATION:]], [rows[n] for n in order[:VALIDATION]]))
    return _figures("all rows", draws, settings, least=0.3, wish=94.0)


def _figures(
    what: str,
    draws: Sequence[tuple[list[Example], list[Example]]],
    settings: TrainingSettings,
    *,
    least: float,
    wish: float,
) -> list[Figure]:
    all_threads()
    test, encoder = bank_rows("test"), Encoder(base_model_path(None), MAX_LENGTH)
    labels = sorted({row.label for row in test})
    task = Classification(labels)
    tuned, plain = [], []
    for seed, (own, held) in enumerate(draws):
        recipe = settings.model_copy(update={"seed": seed})
        started = time.monotonic()
        trained = train(task, encoder, own, held, recipe, lambda *_: None)
        minutes = (time.monotonic() - started) / 60
        probe = probe_outputs(task, encoder, [*own, *held], [row.text for row in test], recipe)
        tuned.append(right(answers(task, encoder, trained.model, test, recipe), test, labels) * np.float64(100))
        plain.append(right(probe, test, labels) * np.float64(100))
        print(
            f"{what}, seed {seed}: {trained.method} {tuned[-1].mean():.2f}, probe {plain[-1].mean():.2f}, {minutes:.1f} minutes",
            flush=True,
        )
    name = f"{what}, {'LoRA' if settings.method == 'lora' else 'all layers'}"
    gains = [after - before for after, before in zip(tuned, plain, strict=True)]
    probe_mean, n = float(np.mean(plain)), len(test) * len(draws)
    return [
        Figure(
            figure=f"{name}: points of accuracy over the probe, paired",
            value=float(np.mean(gains)),
            op=">=",
            target=least,
            n=n,
            interval=over_seeds(gains),
            baseline=0.0,
            goal=settings.method != "lora",
        ),
        Figure(
            figure=f"{name}: accuracy ({PUBLISHED[what]})",
            value=float(np.mean(tuned)),
            op=">=",
            target=wish,
            n=n,
            interval=over_seeds(tuned),
            baseline=probe_mean,
            goal=True,
        ),
    ]
