"""LoRA fine-tuning: probe first, then adapters with the head warm-started from it, kept only if they help.

Turns a dataset's rows into a trained model and its metric history. candidates.py calls `train`. It deliberately
knows no registry, no gates and, but for its `Task`, no task; how a model is fitted once is fitting.py.

Recipe: linear probing then fine-tuning (LP-FT, Kumar et al. 2022). The number of epochs is chosen by NLL on rows that were
not trained on, each contender with its own temperature where the task has one, and must beat the probe by a standard error.
Those are the validation rows; below CROSS_BELOW rows, where a share of them is too few to tell, it is all rows by
cross-validation. Then the choice is repeated on all rows: a small seed can't spare any.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.encoder_task import EncoderTask
from pipelines.training.fitting import Fit
from pipelines.training.model import Encoder
from pipelines.training.tasks import Rows, Task
from schemas.settings import TrainingSettings

LEAST_ROWS = 8
CROSS_BELOW = 1000
# Two folds cost as much as one fit on all rows; a seed of a few rows a label can't be halved, and is cheap.
FOLDS, FOLDS_OF_FEW, FEW_ROWS = 2, 4, 100

History = list[dict[str, float | int | str]]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Trained:
    """A model that carries LoRA adapters, which method won, and what was measured on the way."""

    model: Any
    method: str
    history: History


def train(
    task: Task,
    base: Any,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    settings: TrainingSettings,
    progress: Progress,
    *,
    rejections: Sequence[Example] = (),
) -> Trained:
    """Train a model; the same rows in another order give the same one.

    Args:
        task: what it answers, made for these rows.
        base: the frozen base model that the task asks for, an `Encoder` for most; left as it is.
        train_rows: rows to learn from; their labels, like those of `validation_rows`, are all among the task's.
        validation_rows: rows that choose the number of epochs, and train once that is chosen if rows are few.
        settings: the recipe's.
        progress: called with a share from 0 to 1.
        rejections: rows that say what their label is not; LoRA learns from them, they neither choose nor warm-start.

    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    ordered = [*_sorted(train_rows), *_sorted(validation_rows)]
    epochs, history = 0, History()
    if settings.epochs and len(ordered) >= LEAST_ROWS:
        others = _sorted(rejections) if task.learns_rejections else []
        rows = task.rows(base, [*ordered, *others], settings)
        extra = list(range(len(ordered), len(ordered) + len(others)))
        if len(ordered) < CROSS_BELOW or not validation_rows:
            splits = _folds(ordered, rows)
        else:
            splits = [(list(range(len(train_rows))), list(range(len(train_rows), len(ordered))))]
        search = _Search(task, base, ordered, rows, extra, settings)
        epochs, history = search.run(splits, lambda share: progress(share / 2))
    model = task.start(base, ordered, settings)
    if epochs:
        with Fit(task, model, rows, range(len(ordered) + len(extra)), settings) as fit:
            for epoch in range(1, epochs + 1):
                history.append({"phase": "final", "epoch": epoch, "train_loss": fit.epoch()})
                progress(0.5 + 0.5 * epoch / epochs)
    task.finish(model)
    return Trained(model, "lora" if epochs else "probe", history)


def probe_outputs(
    task: EncoderTask, base: Encoder, rows: Sequence[Example], texts: Sequence[str], settings: TrainingSettings
) -> NDArray[np.float64]:
    """Outputs [n, k] of the probe fitted on `rows`: the baseline that a round has to justify itself against."""
    return task.probe(base.embed([row.text for row in rows]), rows, settings).outputs(base.embed(texts))


class _Search:
    """How many epochs? Answered on rows that were not trained on."""

    def __init__(
        self,
        task: Task,
        base: Any,
        examples: list[Example],
        rows: Rows,
        extra: list[int],
        settings: TrainingSettings,
    ) -> None:
        self._task, self._base, self._settings = task, base, settings
        self._examples, self._rows, self._extra = examples, rows, extra

    def run(self, splits: list[tuple[list[int], list[int]]], progress: Progress) -> tuple[int, History]:
        """The epoch with the lowest held-out NLL and the curve; 0 unless it beats the probe by a standard error."""
        fits = [self._epochs(own, held) for own, held in splits]
        targets = self._rows.targets[[n for _, held in splits for n in held]]
        curve: list[NDArray[np.float64]] = []
        history: History = []
        best = 0
        for epoch in range(self._settings.epochs + 1):
            # Epoch by epoch through all folds, so that all of them stop at the same one.
            outputs = np.concatenate([next(fit) for fit in fits])
            curve.append(self._task.row_losses(outputs, targets))
            found = {"held_out_nll": float(curve[-1].mean()), **self._task.metrics(outputs, targets)}
            history.append({"phase": "search", "epoch": epoch, **{k: v for k, v in found.items() if np.isfinite(v)}})
            progress(epoch / self._settings.epochs)
            if curve[-1].mean() < curve[best].mean():
                best = epoch
            elif epoch - best >= self._settings.patience:
                break
        for fit in fits:
            fit.close()
        gain = curve[0] - curve[best]
        return best if gain.mean() > gain.std() / np.sqrt(len(gain)) else 0, history

    def _epochs(self, own: list[int], held: list[int]) -> Generator[NDArray[Any]]:
        """Outputs of the held-out rows, before the first epoch and after each."""
        model = self._task.start(self._base, [self._examples[n] for n in own], self._settings)
        with Fit(self._task, model, self._rows, [*own, *self._extra], self._settings) as fit:
            yield fit.outputs(held)
            while True:
                fit.epoch()
                yield fit.outputs(held)


def _sorted(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: (row.text, row.label, row.source))


def _folds(examples: Sequence[Example], rows: Rows) -> list[tuple[list[int], list[int]]]:
    """Splits for cross-validation: rows in the order of their targets are dealt out in turn, so that each has all kinds."""
    folds = FOLDS_OF_FEW if len(examples) < FEW_ROWS else FOLDS
    order = sorted(range(len(examples)), key=lambda n: (rows.targets[n].tolist(), examples[n].text))
    held = [sorted(order[fold::folds]) for fold in range(folds)]
    return [(sorted(set(order) - set(fold)), fold) for fold in held]
