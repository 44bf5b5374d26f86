"""The training task's Protocol: everything that differs between classification, multilabel, regression and generation.

trainer.py and fitting.py train whatever satisfies `TrainingTask`. Each task is a module beside this one; encoder_task.py holds
what the linear heads on encoders share.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.warm_start import WarmStart
from schemas.configuration.training import TrainingSettings
from schemas.targets import Task

Forward = Callable[[Sequence[int]], torch.Tensor]


class Inputs(Protocol):
    """Tokenised texts [n] that feed a model, either whole or from the stored output of its frozen layers."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens [n] of each text."""

    def feeding(self, model: Any) -> AbstractContextManager[Forward]:
        """Yield the function from row numbers [b] to outputs [b, ...]; after the `with` the model is whole again."""


@dataclass(frozen=True)
class Batch:
    """Tensors of b rows: targets [b, ...], weights [b], whether the target is rejected [b], a teacher's outputs [b, ...]."""

    targets: torch.Tensor
    weights: torch.Tensor
    rejects: torch.Tensor
    teacher: torch.Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Training rows: inputs, the task's targets [n, ...], weights [n], and whether the target is rejected [n].

    `teacher` [n, ...] holds the champion's outputs in the order of this task's outputs, if the champion is the teacher.
    """

    inputs: Inputs
    targets: NDArray[Any]
    weights: NDArray[np.float32]
    rejects: NDArray[np.bool_]
    teacher: NDArray[np.float32] | None = None

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the tensors of the rows with these numbers."""
        return Batch(
            targets=torch.from_numpy(self.targets[rows]),
            weights=torch.from_numpy(self.weights[rows]),
            rejects=torch.from_numpy(self.rejects[rows]),
            teacher=None if self.teacher is None else torch.from_numpy(self.teacher[rows]),
        )


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows: what is kept [n, ...] of a model's outputs, targets [n, ...] and weights [n]."""

    kept: NDArray[Any]
    targets: NDArray[Any]
    weights: NDArray[np.float32]


class TrainingTask(Protocol):
    """Rows, losses and metrics of one task. Outputs are torch tensors in training, numpy arrays when epochs are compared."""

    @property
    def name(self) -> Task:
        """Return the task's name in the settings."""

    @property
    def learns_rejections(self) -> bool:
        """Return whether it trains on rejected targets; if not, `rows` receives no such examples."""

    def rows(
        self, base: Any, examples: Sequence[Example], settings: TrainingSettings, champion: WarmStart | None = None
    ) -> Rows:
        """Return the tokenised rows of `examples`, in their order, with the champion's outputs if it is the teacher."""

    def start(
        self, base: Any, examples: Sequence[Example], settings: TrainingSettings, champion: WarmStart | None = None
    ) -> Any:
        """Return a torch module to train.

        Without a champion it has a first head and, unless all weights are trained, adapters that change nothing yet. With one
        it has the champion's weights, and first-head rows for labels that are new.
        """

    def losses(self, outputs: torch.Tensor, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
        """Return the unweighted training loss [b] of each row."""

    def kept(self, outputs: torch.Tensor, targets: torch.Tensor) -> NDArray[Any]:
        """Return the part of a batch's outputs [b, ...] that comparing epochs needs."""

    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Return the NLL [n] of held-out rows, after the best temperature for them where the task has one."""

    def metrics(self, kept: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Return the task's metrics on held-out rows."""

    def settle(self, model: Any, held: HeldOut, champion: WarmStart) -> None:
        """Lower the biases of new labels that a warm-started model over-predicts on held-out rows."""

    def finish(self, model: Any) -> None:
        """Convert a trained module's outputs to the unit of the targets."""
