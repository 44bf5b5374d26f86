"""Fine-tuning: what the method trains, kept only if it beats the probe.

Turns a dataset's rows into a trained model and its metric history. candidates.py calls `train`. It deliberately
knows no registry, no gates and, but for its `Task`, no task; how a model is fitted once is fitting.py.

A task's head starts from its probe (LP-FT, Kumar et al. 2022) or from something that leaves more to learn. The number of
epochs is chosen by NLL on rows that were not trained on, each contender with its own temperature where the task has one, and
must beat the probe by a standard error. Those are the validation rows; below CROSS_BELOW rows, where a share of them is too
few to tell, it is all rows by cross-validation. Then the choice is repeated on all rows, as a small seed can't spare any; or
else the best checkpoint is kept. A round that goes on from the champion keeps it always: rows that trained a champion can't
choose epochs for the next.

What is repeated is the latest epoch that was not a standard error worse than the best: few rows name the best one by chance, and
a training that is cut off while its rate is high ends worse than one that is run to its end.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.champion import Champion
from pipelines.training.encoder_task import EncoderTask
from pipelines.training.fitting import RATES, Fit, epochs_of, outputs_of
from pipelines.training.label_names import label_rows
from pipelines.training.log import History, Log, Progress
from pipelines.training.model import Encoder
from pipelines.training.tasks import Held, Rows, Task
from schemas.settings import TrainingSettings

LEAST_ROWS = 8
CROSS_BELOW = 1000
# Of the rate, and passes at most: a champion knows old rows that its replay does not hold, and forgets them (docs/lab-notes.md).
GOING_ON_RATE, GOING_ON_EPOCHS = 0.3, 4
# Two folds cost as much as one fit on all rows; a seed of a few rows a label can't be halved, and is cheap.
FOLDS, FOLDS_OF_FEW, FEW_ROWS = 2, 4, 100

Splits = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Trained:
    """A model, which method won ("probe" if none did better than it), and what was measured on the way.

    It carries LoRA adapters, or, if the method is "full", weights of its own.
    """

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
    champion: Champion | None = None,
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
    search = _Search(task, base, ordered, named, rows, settings, most, goes_on, log)
    keeps = goes_on is not None or (settings.refit_below is not None and len(ordered) >= settings.refit_below)
    if (keeps or len(ordered) >= CROSS_BELOW) and validation_rows:
        splits = [(list(range(len(train_rows))), list(range(len(train_rows), len(ordered))))]
    else:
        splits = _folds(ordered, rows)[: 1 if keeps else None]
    epochs, model = search.run(splits, keeps=keeps)
    if epochs is None:
        return _probe(task, base, ordered, settings, "probe", log)
    if not keeps:
        model = task.start(base, [*ordered, *named], settings, goes_on)
        with Fit(task, model, rows, range(len(rows.targets)), settings) as fit:
            log.begin("final", epochs * fit.steps, 1.0)
            for epoch in range(1, epochs + 1):
                log.line(epoch=epoch, train_loss=fit.epoch(log.step))
    task.finish(model)
    progress(1.0, None)
    return Trained(model, settings.method, log.history)


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
        named: list[Example],
        rows: Rows,
        settings: TrainingSettings,
        most: int,
        champion: Champion | None,
        log: Log,
    ) -> None:
        self._task, self._base, self._settings, self._champion, self._log = task, base, settings, champion, log
        self._most, self._patience = most, most if champion else settings.patience
        self._examples, self._named, self._rows = examples, named, rows
        self._extra = list(range(len(examples), len(rows.targets)))  # what no fold holds back

    def run(self, splits: Splits, *, keeps: bool) -> tuple[int | None, Any]:
        """The epoch with the lowest held-out NLL, or else the latest that is about as good; None unless it beats the probe.

        If it `keeps` what it finds, it is the lowest of one split, and its model comes too, as it was after that epoch.
        """
        held = [held for _, held in splits]
        numbers = [n for part in held for n in part]
        targets, weights = self._rows.targets[numbers], self._rows.weights[numbers]
        weights = weights / weights.mean()
        curve: list[NDArray[np.float64]] = []
        best = chosen = 0
        snapshot = None
        with contextlib.ExitStack() as stack:
            models = [self._start(own, self._settings, self._champion) for own, _ in splits]
            cheap = np.concatenate([self._probe_outputs(own, part) for own, part in splits])
            probe = weights * self._task.row_losses(cheap, targets)
            fits = [
                stack.enter_context(Fit(self._task, model, self._rows, [*own, *self._extra], self._settings))
                for model, (own, _) in zip(models, splits, strict=True)
            ]
            steps = sum(fit.steps for fit in fits) * self._most
            self._log.begin("search", steps, 1.0 if keeps else 0.5)
            for epoch in range(self._most + 1):
                # Epoch by epoch through all folds, so that all of them stop at the same one.
                losses = [fit.epoch(self._log.step) for fit in fits] if epoch else []
                if epoch or self._champion:
                    outputs = np.concatenate([fit.outputs(part) for fit, part in zip(fits, held, strict=True)])
                else:  # what training starts from is no contender, the probe is
                    outputs = cheap
                curve.append(weights * self._task.row_losses(outputs, targets))
                shown = {"search_loss": float(np.mean(losses))} if losses else {}
                self._log.line(
                    epoch=epoch,
                    held_out_nll=float(curve[-1].mean()),
                    **shown,
                    **self._task.metrics(outputs, targets),
                )
                # The probe is met at the end: from prototypes it may take more epochs to pass it than patience has.
                if epoch <= (0 if self._champion else 1) or curve[-1].mean() < curve[best].mean():
                    best, chosen, kept = epoch, epoch, outputs
                    snapshot = fits[0].snapshot() if keeps else None
                elif not keeps and not _worse(curve[epoch], curve[best]):
                    chosen = epoch
                elif epoch - chosen >= self._patience:
                    break
            if snapshot is not None:
                fits[0].restore(snapshot)
        gain = probe - curve[chosen]
        needed = _standard_error(gain)
        beaten = bool(gain.mean() > needed)
        self._log.line(
            chosen=self._settings.method if beaten else "probe",
            epochs=chosen,
            gain_over_probe=float(gain.mean()),
            gain_needed=needed,
        )
        if beaten and self._champion:
            self._task.settle(models[0], Held(kept, targets, weights), self._champion)
        return chosen if beaten else None, models[0]

    def _start(self, own: list[int], settings: TrainingSettings, champion: Champion | None) -> Any:
        return self._task.start(self._base, [*(self._examples[n] for n in own), *self._named], settings, champion)

    def _probe_outputs(self, own: list[int], held: list[int]) -> NDArray[Any]:
        """What the probe says of held-out rows: every contender is held against it."""
        model = self._start(own, as_probe(self._settings), None).eval()
        with self._rows.inputs.feeding(model) as forward:
            found: NDArray[Any] = outputs_of(self._task, forward, self._rows, held)
        return found


def _probe(
    task: Task, base: Any, rows: Sequence[Example], settings: TrainingSettings, method: str, log: Log
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


def as_probe(settings: TrainingSettings) -> TrainingSettings:
    """The recipe that fits a head alone."""
    return settings.model_copy(update={"method": "head"})


def _worse(losses: NDArray[np.float64], best: NDArray[np.float64]) -> bool:
    """Whether the same rows' losses [n] are higher by more than a standard error."""
    return bool((losses - best).mean() > _standard_error(losses - best))


def _standard_error(differences: NDArray[np.float64]) -> float:
    """Of their mean."""
    return float(differences.std() / np.sqrt(len(differences)))


def _sorted(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: (row.text, row.label, row.source))


def _folds(examples: Sequence[Example], rows: Rows) -> Splits:
    """Splits for cross-validation: rows in the order of their targets are dealt out in turn, so that each has all kinds."""
    folds = FOLDS_OF_FEW if len(examples) < FEW_ROWS else FOLDS
    order = sorted(range(len(examples)), key=lambda n: (rows.targets[n].tolist(), examples[n].text))
    held = [sorted(order[fold::folds]) for fold in range(folds)]
    return [(sorted(set(order) - set(fold)), fold) for fold in held]
