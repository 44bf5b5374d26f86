"""Epoch search: choose the number of epochs by the loss on held-out rows.

Turns splits of the rows into the number of epochs with the best held-out loss, or None where the probe is as good. trainer.py
calls `EpochSearch`.

The choice is the latest epoch that is at most a standard error worse than the best. With few rows the best epoch is chance, and
training that stops while the learning rate is high ends worse.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.baselines import beats, standard_error
from pipelines.training.fitting import Fit, outputs_of
from pipelines.training.history import Log
from pipelines.training.tasks.task import HeldOut, Rows, TrainingTask
from pipelines.training.warm_start import WarmStart
from schemas.configuration.training import TrainingSettings

# Two folds cost as much as one fit on all rows. A small set cannot be halved, but more folds of it are cheap.
FOLDS, FOLDS_OF_FEW, FEW_ROWS = 2, 4, 100

Losses = NDArray[np.float64]
Splits = list[tuple[list[int], list[int]]]


@dataclass
class _Curve:
    """Held-out losses [n] by epoch, and the epoch that they choose.

    Epochs up to `first` are chosen without a comparison. With `keep_best` the epoch of the lowest mean loss is chosen.
    """

    first: int
    patience: int
    keep_best: bool
    losses: list[Losses] = field(default_factory=list)
    best: int = 0
    chosen: int = 0

    def add(self, losses: Losses) -> bool:
        """Add the next epoch and return whether it is the best so far."""
        self.losses.append(losses)
        epoch = len(self.losses) - 1
        if epoch <= self.first or losses.mean() < self.losses[self.best].mean():
            self.best = self.chosen = epoch
            return True
        if not self.keep_best and not _worse(losses, self.losses[self.best]):
            self.chosen = epoch
        return False

    @property
    def exhausted(self) -> bool:
        """Return whether `patience` epochs have passed since the chosen one."""
        return len(self.losses) - 1 - self.chosen >= self.patience


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search: the number of epochs, None for the probe; the first split's model; held-out losses [n]."""

    epochs: int | None
    model: Any
    losses: Losses


@dataclass(frozen=True)
class EpochSearch:
    """One search for the number of epochs.

    Args:
        task: made for these rows.
        base: the frozen base model.
        examples: rows that may be held out, in the order of `rows`.
        named: rows made of label names, never held out.
        rows: all rows, tokenised.
        settings: the recipe; at most `epochs` epochs are run.
        champion: the weights to start from, if any.
        log: receives every step and epoch.

    """

    task: TrainingTask
    base: Any
    examples: list[Example]
    named: list[Example]
    rows: Rows
    settings: TrainingSettings
    champion: WarmStart | None
    log: Log

    def run(self, splits: Splits, *, keep_best: bool) -> SearchResult:
        """Return what is best: a number of epochs, or the probe.

        With `keep_best` there is one split, and the model is the checkpoint of the epoch with the lowest mean loss.
        """
        numbers = [n for _, held in splits for n in held]
        targets, weights = self.rows.targets[numbers], self.rows.weights[numbers]
        weights = weights / weights.mean()
        models = [self._start(trained, self.settings, self.champion) for trained, _ in splits]
        probe = np.concatenate([self._probe_outputs(trained, held) for trained, held in splits])
        most = self.settings.epochs or 0
        # From prototypes a model may need more epochs than the patience to pass the probe: take epoch 1 always.
        curve = _Curve(0 if self.champion else 1, most if self.champion else self.settings.patience, keep_best)
        snapshot = kept = None
        with contextlib.ExitStack() as stack:
            fits = [
                stack.enter_context(self._fit(model, rows)) for model, (rows, _) in zip(models, splits, strict=True)
            ]
            self.log.begin("search", sum(fit.steps for fit in fits) * most, 1.0 if keep_best else 0.5)
            for epoch in range(most + 1):
                # All folds run each epoch together, so that they stop at the same one.
                losses = [fit.epoch(self.log.step) for fit in fits] if epoch else []
                # Epoch 0 is the champion or else the probe.
                outputs = self._outputs(fits, splits) if epoch or self.champion else probe
                held_out = weights * self.task.row_losses(outputs, targets)
                self._log_epoch(epoch, losses, held_out, outputs, targets)
                if curve.add(held_out):
                    kept = outputs
                    snapshot = fits[0].snapshot() if keep_best else None
                if curve.exhausted:
                    break
            if snapshot is not None:
                fits[0].restore(snapshot)
        probe_losses = weights * self.task.row_losses(probe, targets)
        if not self._beats_probe(probe_losses, curve):
            return SearchResult(None, models[0], probe_losses)
        if self.champion and kept is not None:
            self.task.settle(models[0], HeldOut(kept, targets, weights), self.champion)
        return SearchResult(curve.chosen, models[0], curve.losses[curve.chosen])

    def _start(self, numbers: list[int], settings: TrainingSettings, champion: WarmStart | None) -> Any:
        return self.task.start(self.base, [*(self.examples[n] for n in numbers), *self.named], settings, champion)

    def _fit(self, model: Any, numbers: list[int]) -> Fit:
        never_held = range(len(self.examples), len(self.rows.targets))
        return Fit(self.task, model, self.rows, [*numbers, *never_held], self.settings)

    def _probe_outputs(self, trained: list[int], held: list[int]) -> NDArray[Any]:
        """Return the outputs [n, k] for held-out rows of a probe fitted on the others."""
        model = self._start(trained, as_probe(self.settings), None).eval()
        with self.rows.inputs.feeding(model) as forward:
            outputs: NDArray[Any] = outputs_of(self.task, forward, self.rows, held)
        return outputs

    @staticmethod
    def _outputs(fits: Sequence[Fit], splits: Splits) -> NDArray[Any]:
        return np.concatenate([fit.outputs(held) for fit, (_, held) in zip(fits, splits, strict=True)])

    def _log_epoch(
        self, epoch: int, losses: list[float], held_out: Losses, outputs: NDArray[Any], targets: NDArray[Any]
    ) -> None:
        shown = {"search_loss": float(np.mean(losses))} if losses else {}
        metrics = self.task.metrics(outputs, targets)
        self.log.line(epoch=epoch, held_out_nll=float(held_out.mean()), **shown, **metrics)

    def _beats_probe(self, probe: Losses, curve: _Curve) -> bool:
        """Return whether the chosen epoch beats the probe's losses [n] by more than a standard error, and log it."""
        gain = probe - curve.losses[curve.chosen]
        needed = standard_error(gain)
        beaten = bool(gain.mean() > needed)
        self.log.line(
            chosen=self.settings.method if beaten else "probe",
            epochs=curve.chosen,
            gain_over_probe=float(gain.mean()),
            gain_needed=needed,
        )
        return beaten


def as_probe(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings that fit a head alone."""
    return settings.model_copy(update={"method": "head"})


def _worse(losses: NDArray[np.float64], best: NDArray[np.float64]) -> bool:
    """Return whether losses [n] exceed the same rows' best losses [n] by more than a standard error."""
    return beats(best, losses)


def folds_of(examples: Sequence[Example], rows: Rows) -> Splits:
    """Return splits for cross-validation; rows sorted by target go to the folds in turn, so that each fold has all labels."""
    folds = FOLDS_OF_FEW if len(examples) < FEW_ROWS else FOLDS
    order = sorted(range(len(examples)), key=lambda n: (rows.targets[n].tolist(), examples[n].text))
    held = [sorted(order[fold::folds]) for fold in range(folds)]
    return [(sorted(set(order) - set(fold)), fold) for fold in held]
