"""Fine-tuning: train a model on a dataset's rows, and keep it only if it beats the probe.

candidates.py calls `train`, which returns the model and its history. fitting.py runs one fit.

The head starts from the probe (LP-FT, Kumar et al. 2022) or from a head that leaves more to learn. The number of epochs is
the one with the best NLL on held-out rows, each epoch with its own temperature where the task has one. It must beat the
probe's NLL by a standard error.

The held-out rows are the validation rows or, below `cross_below` rows, those of cross-validation. Below `training.refit_below`
rows, the model is trained again on all rows for the chosen number of epochs; above, the best checkpoint is kept. A warm-started
round always keeps the best checkpoint: rows that trained the champion cannot choose epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder
from pipelines.models.tfidf import TfidfModel
from pipelines.training.baselines import TfidfRival, beats, fit_chosen_probe, with_chosen_c
from pipelines.training.epoch_search import EpochSearch, SearchResult, Splits, as_probe, folds_of
from pipelines.training.fitting import RATES, Fit, epochs_of
from pipelines.training.history import History, Log, TrainingProgress
from pipelines.training.hyperparameter_search import searched
from pipelines.training.label_names import label_rows
from pipelines.training.tasks.encoder_task import EncoderTask
from pipelines.training.tasks.task import Rows, TrainingTask
from pipelines.training.warm_start import WarmStart
from schemas.configuration.training import TrainingSettings

LEAST_ROWS = 8
CROSS_BELOW = 1000
# Factor on the learning rate, and most epochs: more would make a champion forget rows that are not replayed (docs/lab-notes.md).
WARM_START_RATE, WARM_START_EPOCHS = 0.3, 4


@dataclass(frozen=True)
class Trained:
    """A trained model, the method that made it, and the training history.

    The model carries LoRA adapters or, if the method is "full", all of its weights are trained. The method is "probe" if
    fine-tuning was not better, and "tfidf", with a `TfidfModel`, if TF-IDF was.
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
    cross_below: int = CROSS_BELOW,
) -> Trained:
    """Return a trained model; the order of the rows does not matter.

    Args:
        task: made for these rows.
        base: frozen `Encoder` or, for generation, `Decoder`; left as it is.
        train_rows: training rows; their labels, like those of `validation_rows`, are all among the task's.
        validation_rows: rows that choose the number of epochs; training rows too once it is chosen, if rows are few.
        settings: the recipe.
        progress: receives the completed share from 0 to 1, and the pace while there is one.
        rejections: rows whose label is known to be wrong; neither the probe nor the epoch search uses them.
        champion: the weights to start from if `settings.start` is "champion"; the teacher of focal distillation.
        cross_below: number of rows below which epochs are chosen by cross-validation.

    Raises:
        TrainingDiverged: the loss is not finite.

    """
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    ordered = [*_sorted(train_rows), *_sorted(validation_rows)]
    log = Log(progress)
    start = champion if settings.start == "champion" else None
    settings = settings if start is None else _warm_start_settings(settings)
    settings = with_chosen_c(task, base, ordered, settings)
    if settings.method == "head" or settings.epochs == 0 or len(ordered) < LEAST_ROWS:
        return _baseline(task, base, ordered, settings, log)
    named = label_rows(task.name, ordered) if settings.label_names else []
    taught = [*ordered, *named, *(_sorted(rejections) if task.learns_rejections else [])]
    rows = task.rows(base, taught, settings, champion)
    most = epochs_of(len(ordered), int(rows.inputs.lengths[: len(ordered)].sum()), settings)
    settings = settings.model_copy(update={"epochs": most})
    held = range(len(train_rows), len(ordered))
    settings = searched(task, base, taught, rows, held, settings, log) if start is None else settings
    keep_best = start is not None or (settings.refit_below is not None and len(ordered) >= settings.refit_below)
    whole = (keep_best or len(ordered) >= cross_below) and validation_rows
    splits = [(list(range(held.start)), list(held))] if whole else folds_of(ordered, rows)[: 1 if keep_best else None]
    search = EpochSearch(task, base, ordered, named, rows, settings, start, log)
    result = search.run(splits, keep_best=keep_best)
    if tfidf := _better_tfidf(task, base, ordered, rows, splits, result, settings, log):
        return Trained(tfidf, "tfidf", log.history)
    if result.epochs is None:
        return _probe(task, base, ordered, settings, "probe", log)
    model = result.model
    if not keep_best:
        model = task.start(base, [*ordered, *named], settings, start)
        _fit_all_rows(task, model, rows, settings, result.epochs, log)
    task.finish(model)
    progress(1.0, None)
    return Trained(model, settings.method, log.history)


def _baseline(task: TrainingTask, base: Any, rows: list[Example], settings: TrainingSettings, log: Log) -> Trained:
    """Return the better of the two baselines; the probe, if rows are too few to compare them."""
    if settings.tfidf and isinstance(task, EncoderTask) and len(rows) >= LEAST_ROWS:
        rival = TfidfRival(task, rows)
        tfidf = rival.fit() if rival.beats_probe(base, settings) else None
        if tfidf is not None:
            return Trained(tfidf, "tfidf", log.history)
    return _probe(task, base, rows, settings, "head" if settings.method == "head" else "probe", log)


def _better_tfidf(
    task: TrainingTask,
    base: Any,
    examples: list[Example],
    rows: Rows,
    splits: Splits,
    result: SearchResult,
    settings: TrainingSettings,
    log: Log,
) -> TfidfModel | None:
    """Return TF-IDF on all rows, and log it, if it beats the search's result."""
    if not settings.tfidf or not isinstance(task, EncoderTask):
        return None
    rival, held = TfidfRival(task, examples), [n for _, numbers in splits for n in numbers]
    if not rival.ngrams.vocabulary.names:
        return None
    outputs, targets, weights = rival.held_out(splits), rows.targets[held], rows.weights[held]
    losses = weights / weights.mean() * task.row_losses(outputs, targets)
    # Between two baselines the better one serves; a trained model has to be beaten by more than a standard error.
    better = rival.beats_probe(base, settings) if result.epochs is None else beats(losses, result.losses)
    metrics = task.metrics(outputs, targets)
    log.line(rival="tfidf", better=better, held_out_nll=float(losses.mean()), **metrics)
    return rival.fit() if better else None


def probe_outputs(
    task: EncoderTask, base: Encoder, rows: Sequence[Example], texts: Sequence[str], settings: TrainingSettings
) -> NDArray[np.float64]:
    """Return the outputs [n, k], for `texts`, of a probe fitted on `rows`: the baseline of a round."""
    return fit_chosen_probe(task, base, rows, settings).outputs(base.embed(texts))


def _fit_all_rows(
    task: TrainingTask, model: Any, rows: Rows, settings: TrainingSettings, epochs: int, log: Log
) -> None:
    """Train on all rows for the chosen number of epochs."""
    with Fit(task, model, rows, range(len(rows.targets)), settings) as fit:
        log.begin("final", epochs * fit.steps, 1.0)
        for epoch in range(1, epochs + 1):
            log.line(epoch=epoch, train_loss=fit.epoch(log.step))


def _probe(
    task: TrainingTask, base: Any, rows: Sequence[Example], settings: TrainingSettings, method: str, log: Log
) -> Trained:
    """Return the probe as a model, with adapters that change nothing."""
    named = label_rows(task.name, rows) if settings.label_names else []
    model = task.start(base, [*rows, *named], as_probe(settings))
    task.finish(model)
    return Trained(model, method, log.history)


def _warm_start_settings(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings with a warm start's learning rate and epochs, where the user has set none."""
    defaults = {"learning_rate": WARM_START_RATE * RATES[settings.method], "epochs": WARM_START_EPOCHS}
    return settings.model_copy(update={k: v for k, v in defaults.items() if getattr(settings, k) is None})


def _sorted(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: (row.text, row.label, row.source))
