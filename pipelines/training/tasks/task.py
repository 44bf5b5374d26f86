"""What the trainer asks of a task: everything that differs between classifying, tagging, estimating and writing.

Turns the name of a task into one. trainer.py and fitting.py train whatever keeps these promises; a task is one small module
beside this one, with linear heads on encoders in encoder_task.py. Nothing here knows optimisers, epochs or files.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.warm_start import WarmStart
from schemas.settings import TrainingSettings
from schemas.targets import Task

CalibrationKind = Literal["softmax", "sigmoid", "interval", "sequence"]
Forward = Callable[[Sequence[int]], torch.Tensor]


class Inputs(Protocol):
    """n tokenised texts, and how a model is fed with them: whole, or with what frozen layers gave once."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens [n] of each."""

    def feeding(self, model: Any) -> AbstractContextManager[Forward]:
        """Inside: row numbers [b] -> the model's outputs [b, ...]. After it the model is whole again."""


@dataclass(frozen=True)
class Batch:
    """b rows as tensors: targets [b, ...], weights [b], whether a target is complementary [b], a teacher's outputs [b, ...]."""

    targets: torch.Tensor
    weights: torch.Tensor
    rejects: torch.Tensor
    teacher: torch.Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """n rows ready for training: inputs, targets [n, ...] as the task has them, weights [n], complementary or not [n].

    `teacher` [n, ...] are the champion's outputs in the order of this task's, if it teaches.
    """

    inputs: Inputs
    targets: NDArray[Any]
    weights: NDArray[np.float32]
    rejects: NDArray[np.bool_]
    teacher: NDArray[np.float32] | None = None

    def batch(self, rows: Sequence[int]) -> Batch:
        """All but the inputs of some rows."""
        return Batch(
            targets=torch.from_numpy(self.targets[rows]),
            weights=torch.from_numpy(self.weights[rows]),
            rejects=torch.from_numpy(self.rejects[rows]),
            teacher=None if self.teacher is None else torch.from_numpy(self.teacher[rows]),
        )


@dataclass(frozen=True)
class Held:
    """What is kept [n, ...] of a model's outputs for rows that were not trained on, their targets [n, ...] and weights [n]."""

    kept: NDArray[Any]
    targets: NDArray[Any]
    weights: NDArray[np.float32]


class TrainingTask(Protocol):
    """What a round's model answers. Outputs are torch's while training, numpy's while epochs are compared."""

    @property
    def name(self) -> Task:
        """As in the settings."""

    @property
    def calibration(self) -> CalibrationKind:
        """What makes its outputs honest."""

    @property
    def learns_rejections(self) -> bool:
        """Whether "not this target" teaches it anything; if not, such rows do not reach it."""

    def rows(
        self, base: Any, examples: Sequence[Example], settings: TrainingSettings, champion: WarmStart | None = None
    ) -> Rows:
        """Tokenised rows of examples in their order; a `champion` teaches, where the task lets it."""

    def start(
        self, base: Any, examples: Sequence[Example], settings: TrainingSettings, champion: WarmStart | None = None
    ) -> Any:
        """A torch module to be trained.

        Without a champion what the cheapest method makes of the rows, with adapters that change nothing yet (none, if all weights
        are to be trained); with one, its weights and what they lack.
        """

    def losses(self, outputs: torch.Tensor, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
        """Training loss [b] of each row, not weighted."""

    def kept(self, outputs: torch.Tensor, targets: torch.Tensor) -> NDArray[Any]:
        """What of a batch's outputs [b, ...] is needed to compare epochs."""

    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """NLL [n] of rows that were not trained on, after this contender's own temperature where the task has one."""

    def metrics(self, kept: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """The task's metrics on the same rows."""

    def settle(self, model: Any, held: Held, champion: WarmStart) -> None:
        """Take back what a model that went on from a champion says too often."""

    def finish(self, model: Any) -> None:
        """Make a trained module answer in the unit of its targets."""
