"""Regression: the training task whose targets are numbers.

Targets are standardised in training, so that the recipe's learning rates suit any unit. The exported model returns the original
unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.metrics import point
from pipelines.models.probe import Features, Probe, fit_ridge
from pipelines.training.tasks.encoder_task import EncoderTask
from pipelines.training.tasks.task import Batch
from schemas.configuration.training import TrainingSettings


@dataclass(frozen=True)
class Regression(EncoderTask):
    """Outputs [n, 1] and targets [n] are standardised numbers: value = shift + scale * output."""

    shift: float = 0.0
    scale: float = 1.0
    name: Literal["regression"] = "regression"
    learns_rejections: bool = False  # "not 7" does not tell whether the number is higher or lower

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        """Return the task with mean and standard deviation of these rows."""
        values = np.array([float(e.label) for e in examples] or [0.0])
        return cls(float(values.mean()), float(values.std()) or 1.0)

    def targets(self, examples: Sequence[Example]) -> NDArray[Any]:
        """Return the standardised targets [n]."""
        values = np.array([float(e.label) for e in examples])
        return np.asarray((values - self.shift) / self.scale, dtype=np.float32)

    def probes(self, features: Features, examples: Sequence[Example], cs: Sequence[float]) -> list[Probe]:
        """Return a ridge regression in the target's unit for each C, all the same: it chooses its own regularisation."""
        values = np.array([float(e.label) for e in examples])
        return [fit_ridge(features, values, weights=[e.weight for e in examples])] * len(cs)

    def losses(self, outputs: torch.Tensor, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
        """Return half the squared error [b]: the NLL of a normal distribution with variance 1, up to a constant."""
        return (outputs[:, 0] - batch.targets) ** 2 / 2

    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Return the NLL [n] of a normal distribution with the best variance for these rows, in standardised units."""
        squares = (kept[:, 0].astype(np.float64) - targets) ** 2
        variance = max(float(squares.mean()), 1e-12)
        return np.asarray(squares / (2 * variance) + np.log(2 * np.pi * variance) / 2)

    def metrics(self, kept: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Return the error metrics in the target's unit."""
        return point.regression(self.shift + self.scale * targets, self.shift + self.scale * kept[:, 0])
