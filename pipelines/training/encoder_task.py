"""What the tasks of an encoder share: mean-pooled embeddings, a linear head that starts as a probe on them.

Turns examples into rows, and a probe into a module to be trained. classification.py, multilabel.py and regression.py say what
is left: targets, probe, losses, metrics. It deliberately knows no optimiser.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.lower_layers import LowerStates
from pipelines.training.model import Encoder, TextModel, first_adapted, with_lora
from pipelines.training.probe import Probe
from pipelines.training.tasks import Rows
from schemas.settings import TrainingSettings

LEAST_OTHER = 1e-4  # probability of everything else together, of a rejection


class EncoderTask(ABC):
    """Targets and losses over the outputs [n, k] of a linear head.

    `shift` and `scale` stand between what the head says in training and the unit of its targets: value = shift + scale * output.
    """

    learns_rejections = True
    shift: float = 0.0
    scale: float = 1.0

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> NDArray[Any]:
        """[n] or [n, k], as the head is to say them in training."""

    @abstractmethod
    def probe(self, embeddings: NDArray[np.float32], examples: Sequence[Example], settings: TrainingSettings) -> Probe:
        """The regularised linear model on embeddings [n, width] that a round starts from and must beat, in the target's unit."""

    def rows(self, base: Encoder, examples: Sequence[Example], settings: TrainingSettings) -> Rows:
        """Tokenised rows of examples in their order."""
        ids = base.tokenizer([e.text for e in examples], truncation=True, max_length=base.max_length)["input_ids"]
        return Rows(
            LowerStates(base, ids, first_adapted(base, settings)),
            self.targets(examples),
            np.array([e.weight for e in examples], dtype=np.float32),
            np.array([e.rejects for e in examples], dtype=bool),
        )

    def start(self, base: Encoder, examples: Sequence[Example], settings: TrainingSettings) -> TextModel:
        """The probe on these rows as a module: its head, and adapters that change nothing yet."""
        torch.manual_seed(settings.seed)
        probe = self.probe(base.embed([e.text for e in examples]), examples, settings)
        bias = (probe.bias - self.shift) / self.scale
        return TextModel(with_lora(base, settings), base.width, probe.weight / self.scale, bias)

    def kept(self, outputs: torch.Tensor, targets: torch.Tensor) -> NDArray[Any]:
        """All of them: [b, k]."""
        return np.asarray(outputs.numpy())

    def finish(self, model: TextModel) -> None:
        """Fold shift and scale into the head."""
        with torch.no_grad():
            model.head.weight.mul_(self.scale)
            model.head.bias.mul_(self.scale).add_(self.shift)


def not_this(nll: torch.Tensor) -> torch.Tensor:
    """-log(1 - p) from -log p [n]. Bounded: its gradient is not, where the model is certain of what is rejected."""
    return -torch.log1p(-(-nll).exp().clamp(max=1 - LEAST_OTHER))
