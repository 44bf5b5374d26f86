"""The epoch search: how many epochs to train, answered on rows that were not trained on.

Turns splits of the rows into the number of epochs whose held-out loss is best, or into nothing where the probe is as good.
trainer.py calls `EpochSearch`. It deliberately knows no task but through its `TrainingTask`, and ships no model by itself.

What is chosen is the latest epoch that was not a standard error worse than the best: few rows name the best one by chance, and
a training that is cut off while its rate is high ends worse than one that is run to its end.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.fitting import Fit, outputs_of
from pipelines.training.history import Log
from pipelines.training.tasks.task import Held, Rows, TrainingTask
from pipelines.training.warm_start import WarmStart
from schemas.settings import TrainingSettings

# Two folds cost as much as one fit on all rows; a seed of a few rows a label can't be halved, and is cheap.
FOLDS, FOLDS_OF_FEW, FEW_ROWS = 2, 4, 100

Losses = NDArray[np.float64]
Splits = list[tuple[list[int], list[int]]]


@dataclass
class _Curve:
    """Held-out losses [n] by epoch, and the epoch that they choose.

    `first` is the last epoch that is taken without a comparison; `keeps`: the lowest mean loss wins, even by chance.
    """

    first: int
    patience: int
    keeps: bool
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
        if not self.keeps and not _worse(losses, self.losses[self.best]):
            self.chosen = epoch
        return False

    @property
    def exhausted(self) -> bool:
        """Whether `patience` epochs have passed since the chosen one."""
        return len(self.losses) - 1 - self.chosen >= self.patience


@dataclass(frozen=True)
class EpochSearch:
    """One search.

    Args:
        task: what the model answers.
        base: the frozen base model.
        examples: rows that may be held out, in the order of `rows`.
        named: rows made of the labels' own words, which no fold holds back.
        rows: all of them, tokenised.
        settings: the recipe; `epochs` is the most that are run.
        champion: whose weights go on, if any.
        log: told of every step and epoch.

    """

    task: TrainingTask
    base: Any
    examples: list[Example]
    named: list[Example]
    rows: Rows
    settings: TrainingSettings
    champion: WarmStart | None
    log: Log

    def run(self, splits: Splits, *, keeps: bool) -> tuple[int | None, Any]:
        """Return the number of epochs and the first split's model, or None if the probe is as good.

        With `keeps` there is one split, the epoch of the lowest mean loss is chosen, and the model is as it was after that epoch.
        """
        numbers = [n for _, held in splits for n in held]
        targets, weights = self.rows.targets[numbers], self.rows.weights[numbers]
        weights = weights / weights.mean()
        models = [self._start(own, self.settings, self.champion) for own, _ in splits]
        cheap = np.concatenate([self._probe_outputs(own, held) for own, held in splits])
        # From prototypes a model may take more epochs to pass the probe than patience has: epoch 1 is always taken.
        most = self._most
        curve = _Curve(0 if self.champion else 1, most if self.champion else self.settings.patience, keeps)
        snapshot = kept = None
        with contextlib.ExitStack() as stack:
            fits = [stack.enter_context(self._fit(model, own)) for model, (own, _) in zip(models, splits, strict=True)]
            self.log.begin("search", sum(fit.steps for fit in fits) * most, 1.0 if keeps else 0.5)
            for epoch in range(most + 1):
                # Epoch by epoch through all folds, so that all of them stop at the same one.
                losses = [fit.epoch(self.log.step) for fit in fits] if epoch else []
                # What training starts from is no contender unless it is the champion: the probe is.
                outputs = self._outputs(fits, splits) if epoch or self.champion else cheap
                held_out = weights * self.task.row_losses(outputs, targets)
                self._log_epoch(epoch, losses, held_out, outputs, targets)
                if curve.add(held_out):
                    kept = outputs
                    snapshot = fits[0].snapshot() if keeps else None
                if curve.exhausted:
                    break
            if snapshot is not None:
                fits[0].restore(snapshot)
        if not self._beats_probe(weights * self.task.row_losses(cheap, targets), curve):
            return None, models[0]
        if self.champion and kept is not None:
            self.task.settle(models[0], Held(kept, targets, weights), self.champion)
        return curve.chosen, models[0]

    @property
    def _most(self) -> int:
        return self.settings.epochs or 0

    def _start(self, own: list[int], settings: TrainingSettings, champion: WarmStart | None) -> Any:
        return self.task.start(self.base, [*(self.examples[n] for n in own), *self.named], settings, champion)

    def _fit(self, model: Any, own: list[int]) -> Fit:
        extra = range(len(self.examples), len(self.rows.targets))  # what no fold holds back
        return Fit(self.task, model, self.rows, [*own, *extra], self.settings)

    def _probe_outputs(self, own: list[int], held: list[int]) -> NDArray[Any]:
        """Return the probe's outputs [n, k] for held-out rows."""
        model = self._start(own, as_probe(self.settings), None).eval()
        with self.rows.inputs.feeding(model) as forward:
            found: NDArray[Any] = outputs_of(self.task, forward, self.rows, held)
        return found

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
        """Return whether the chosen epoch is better than the probe's losses [n] by more than a standard error; logs it."""
        gain = probe - curve.losses[curve.chosen]
        needed = _standard_error(gain)
        beaten = bool(gain.mean() > needed)
        self.log.line(
            chosen=self.settings.method if beaten else "probe",
            epochs=curve.chosen,
            gain_over_probe=float(gain.mean()),
            gain_needed=needed,
        )
        return beaten


def as_probe(settings: TrainingSettings) -> TrainingSettings:
    """The recipe that fits a head alone."""
    return settings.model_copy(update={"method": "head"})


def _worse(losses: NDArray[np.float64], best: NDArray[np.float64]) -> bool:
    """Whether the same rows' losses [n] are higher by more than a standard error."""
    return bool((losses - best).mean() > _standard_error(losses - best))


def _standard_error(differences: NDArray[np.float64]) -> float:
    """Of their mean."""
    return float(differences.std() / np.sqrt(len(differences)))


def folds_of(examples: Sequence[Example], rows: Rows) -> Splits:
    """Splits for cross-validation: rows in the order of their targets are dealt out in turn, so that each has all kinds."""
    folds = FOLDS_OF_FEW if len(examples) < FEW_ROWS else FOLDS
    order = sorted(range(len(examples)), key=lambda n: (rows.targets[n].tolist(), examples[n].text))
    held = [sorted(order[fold::folds]) for fold in range(folds)]
    return [(sorted(set(order) - set(fold)), fold) for fold in held]
