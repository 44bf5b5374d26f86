"""What the tasks of an encoder share: mean-pooled embeddings, a linear head on them, a probe to beat.

Turns examples into rows, and a probe or a champion into a module to be trained. classification.py, multilabel.py and
regression.py say what is left: targets, probe, losses, metrics. It deliberately knows no optimiser.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, TextModel, computes_bf16, shared_copy, trainable_copy
from pipelines.models.probe import Probe
from pipelines.training.frozen_layers import EncoderInputs
from pipelines.training.tasks.task import Held, Rows
from pipelines.training.warm_start import HEAD, WarmStart
from schemas.settings import TrainingSettings

LEAST_OTHER = 1e-4  # probability of everything else together, of a rejection
VALUE = ("value",)  # the one output of a task without labels


class EncoderTask(ABC):
    """Targets and losses over the outputs [n, k] of a linear head, one for each of `labels` if there are any.

    `shift` and `scale` stand between what the head says in training and the unit of its targets: value = shift + scale * output.
    """

    learns_rejections = True
    labels: Sequence[str] = ()
    shift: float = 0.0
    scale: float = 1.0

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> NDArray[Any]:
        """[n] or [n, k], as the head is to say them in training."""

    @abstractmethod
    def probe(self, embeddings: NDArray[np.float32], examples: Sequence[Example], settings: TrainingSettings) -> Probe:
        """The regularised linear model on embeddings [n, width] that a round must beat, in the target's unit."""

    def first_head(
        self, embeddings: NDArray[np.float32], examples: Sequence[Example], settings: TrainingSettings
    ) -> Probe:
        """The head that training starts from, in the target's unit: the probe, unless a task knows a better one."""
        return self.probe(embeddings, examples, settings)

    def rows(
        self,
        base: Encoder,
        examples: Sequence[Example],
        settings: TrainingSettings,
        champion: WarmStart | None = None,
    ) -> Rows:
        """Tokenised rows of examples in their order."""
        texts = [e.text for e in examples]
        return Rows(
            EncoderInputs(base, base.tokenizer(texts, truncation=True, max_length=base.max_length)["input_ids"]),
            self.targets(examples),
            np.array([e.weight for e in examples], dtype=np.float32),
            np.array([e.rejects for e in examples], dtype=bool),
            self._teacher(champion, base, texts, settings) if champion and settings.focal_distillation else None,
        )

    def start(
        self,
        base: Encoder,
        examples: Sequence[Example],
        settings: TrainingSettings,
        champion: WarmStart | None = None,
    ) -> TextModel:
        """A first head and an encoder that has learnt nothing yet; or the champion's, grown. If the method is head, the probe."""
        torch.manual_seed(settings.seed)
        texts = [e.text for e in examples]
        if champion is None:
            encoder = trainable_copy(base, settings)
            first = self.probe if settings.method == "head" else self.first_head
            head = first(base.embed(texts), examples, settings)
        else:
            encoder = _encoder_of(champion, base, settings)
            head = self._grown(champion, encoder, base, examples, settings)
        return TextModel(
            encoder,
            base.width,
            head.weight / self.scale,
            (head.bias - self.shift) / self.scale,
            bf16=computes_bf16() if settings.bf16 is None else settings.bf16,
        )

    def kept(self, outputs: torch.Tensor, targets: torch.Tensor) -> NDArray[Any]:
        """All of them: [b, k]."""
        return np.asarray(outputs.numpy())

    def settle(self, model: TextModel, held: Held, champion: WarmStart) -> None:  # noqa: B027 - where labels compete there is more
        """Nothing to do: no label takes from another."""

    def finish(self, model: TextModel) -> None:
        """Fold shift and scale into the head; answers are in full precision."""
        model.bf16 = False
        with torch.no_grad():
            model.head.weight.mul_(self.scale)
            model.head.bias.mul_(self.scale).add_(self.shift)

    def _grown(
        self, champion: WarmStart, encoder: Any, base: Encoder, examples: Sequence[Example], settings: TrainingSettings
    ) -> Probe:
        """The champion's head in the order of today's labels. New ones get a first head's rows, on what its encoder gives."""
        trained = champion.tensors(HEAD)
        place = {name: n for n, name in enumerate(champion.labels or VALUE) if name not in champion.untaught}
        weight, bias = (trained[name].numpy().astype(np.float64) for name in ("weight", "bias"))
        names = self.labels or VALUE
        if set(names) <= place.keys():
            rows = [place[name] for name in names]
            return Probe(weight[rows], bias[rows])
        head = self.first_head(base.embed_with(encoder, [e.text for e in examples]), examples, settings)
        old = [n for n, name in enumerate(names) if name in place]
        rows = [place[names[n]] for n in old]
        head.weight[old], head.bias[old] = weight[rows], bias[rows]
        return head

    def _teacher(
        self, champion: WarmStart, base: Encoder, texts: Sequence[str], settings: TrainingSettings
    ) -> NDArray[np.float32]:
        """The champion's outputs [n, k] in the order of today's labels; NaN where it does not know one."""
        head, names = champion.tensors(HEAD), list(champion.labels or VALUE)
        known = base.embed_with(_encoder_of(champion, base, settings), texts)
        outputs = known @ head["weight"].numpy().T + head["bias"].numpy()
        found = np.full((len(texts), len(self.labels or VALUE)), np.nan, dtype=np.float32)
        for n, name in enumerate(self.labels or VALUE):
            if name in names:
                found[:, n] = outputs[:, names.index(name)]
        return found


def not_this(nll: torch.Tensor) -> torch.Tensor:
    """-log(1 - p) from -log p [n]. Bounded: its gradient is not, where the model is certain of what is rejected."""
    return -torch.log1p(-(-nll).exp().clamp(max=1 - LEAST_OTHER))


def _encoder_of(champion: WarmStart, base: Encoder, settings: TrainingSettings) -> Any:
    return champion.apply(copy.deepcopy(base.model) if champion.is_whole else shared_copy(base.model), settings)
