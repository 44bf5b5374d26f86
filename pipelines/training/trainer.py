"""Fine-tuning: what the method trains, kept only if it beats the probe.

Turns a dataset's rows into a trained model and its metric history. candidates.py calls `train`. It deliberately
knows no registry, no gates and, but for its `TrainingTask`, no task; how a model is fitted once is fitting.py.

A task's head starts from its probe (LP-FT, Kumar et al. 2022) or from something that leaves more to learn. The number of
epochs is chosen by NLL on rows that were not trained on, each contender with its own temperature where the task has one, and
must beat the probe by a standard error. Those are the validation rows; below CROSS_BELOW rows, where a share of them is too
few to tell, it is all rows by cross-validation. Then the choice is repeated on all rows, as a small seed can't spare any; or
else the best checkpoint is kept. A round that goes on from the champion keeps it always: rows that trained a champion can't
choose epochs for the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder
from pipelines.training.epoch_search import EpochSearch, as_probe, folds_of
from pipelines.training.fitting import RATES, Fit, epochs_of
from pipelines.training.history import History, Log, TrainingProgress
from pipelines.training.label_names import label_rows
from pipelines.training.tasks.encoder_task import EncoderTask
from pipelines.training.tasks.task import Rows, TrainingTask
from pipelines.training.warm_start import WarmStart
from schemas.settings import TrainingSettings

LEAST_ROWS = 8
CROSS_BELOW = 1000
# Of the rate, and passes at most: a champion knows old rows that its replay does not hold, and forgets them (docs/lab-notes.md).
GOING_ON_RATE, GOING_ON_EPOCHS = 0.3, 4


@dataclass(frozen=True)
class Trained:
    """A model, which method won ("probe" if none did better than it), and what was measured on the way.

    It carries LoRA adapters, or, if the method is "full", weights of its own.
    """

    model: Any
    method: str
    history: History


def train(
    task: TrainingTask,
    base: Any,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    settings: TrainingSettings,
    progress: TrainingProgress,
    *,
    rejections: Sequence[Example] = (),
    champion: WarmStart | None = None,
) -> Trained:
    """Train a model; the same rows in another order give the same one.

    Args:
        task: what it answers, made for these rows.
        base: the frozen base model that the task asks for, an `Encoder` for most; left as it is.
        train_rows: rows to learn from; their labels, like those of `validation_rows`, are all among the task's.
        validation_rows: rows that choose the number of epochs, and train once that is chosen if rows are few.
        settings: the recipe's.
        progress: called with a share from 0 to 1, and the pace where there is one.
        rejections: rows that say what their label is not; the probe neither learns from them nor do they choose.
        champion: whose weights go on if `settings.start` says so, and who teaches if `settings.focal_distillation` does.

    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    ordered = [*_sorted(train_rows), *_sorted(validation_rows)]
    log = Log(progress)
    goes_on = champion if settings.start == "champion" else None
    if goes_on is not None:
        settings = _going_on(settings)
    most = epochs_of(len(ordered), settings)
    settings = settings.model_copy(update={"epochs": most})
    if settings.method == "head" or not most or len(ordered) < LEAST_ROWS:
        return _probe(task, base, ordered, settings, "head" if settings.method == "head" else "probe", log)
    named = label_rows(task.name, ordered) if settings.label_names else []
    others = _sorted(rejections) if task.learns_rejections else []
    rows = task.rows(base, [*ordered, *named, *others], settings, champion)
    keeps = goes_on is not None or (settings.refit_below is not None and len(ordered) >= settings.refit_below)
    if (keeps or len(ordered) >= CROSS_BELOW) and validation_rows:
        splits = [(list(range(len(train_rows))), list(range(len(train_rows), len(ordered))))]
    else:
        splits = folds_of(ordered, rows)[: 1 if keeps else None]
    search = EpochSearch(task, base, ordered, named, rows, settings, goes_on, log)
    epochs, model = search.run(splits, keeps=keeps)
    if epochs is None:
        return _probe(task, base, ordered, settings, "probe", log)
    if not keeps:
        model = task.start(base, [*ordered, *named], settings, goes_on)
        _fit_all_rows(task, model, rows, settings, epochs, log)
    task.finish(model)
    progress(1.0, None)
    return Trained(model, settings.method, log.history)


def probe_outputs(
    task: EncoderTask, base: Encoder, rows: Sequence[Example], texts: Sequence[str], settings: TrainingSettings
) -> NDArray[np.float64]:
    """Outputs [n, k] of the probe fitted on `rows`: the baseline that a round has to justify itself against."""
    return task.probe(base.embed([row.text for row in rows]), rows, settings).outputs(base.embed(texts))


def _fit_all_rows(
    task: TrainingTask, model: Any, rows: Rows, settings: TrainingSettings, epochs: int, log: Log
) -> None:
    """Train on every row for the number of epochs that was chosen."""
    with Fit(task, model, rows, range(len(rows.targets)), settings) as fit:
        log.begin("final", epochs * fit.steps, 1.0)
        for epoch in range(1, epochs + 1):
            log.line(epoch=epoch, train_loss=fit.epoch(log.step))


def _probe(
    task: TrainingTask, base: Any, rows: Sequence[Example], settings: TrainingSettings, method: str, log: Log
) -> Trained:
    """The probe, with adapters that change nothing."""
    named = label_rows(task.name, rows) if settings.label_names else []
    model = task.start(base, [*rows, *named], as_probe(settings))
    task.finish(model)
    return Trained(model, method, log.history)


def _going_on(settings: TrainingSettings) -> TrainingSettings:
    """The recipe of a round that goes on from the champion, where nothing else is set."""
    gentle = {"learning_rate": GOING_ON_RATE * RATES[settings.method], "epochs": GOING_ON_EPOCHS}
    return settings.model_copy(update={k: v for k, v in gentle.items() if getattr(settings, k) is None})


def _sorted(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: (row.text, row.label, row.source))
