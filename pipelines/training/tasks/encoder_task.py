"""The shared part of an encoder's training tasks: mean-pooled embeddings, a linear head on them, a probe to beat.

Turns examples into rows, and a probe or a champion into a module to train. classification.py, multilabel.py and regression.py
add targets, probe, losses and metrics.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.models.dropout import with_fast_dropout
from pipelines.models.encoder import Encoder, TextModel, computes_bf16, shared_copy, trainable_copy
from pipelines.models.families import encoder_family
from pipelines.models.probe import PROBE_C, Features, Probe
from pipelines.training.frozen_layers import EncoderInputs
from pipelines.training.tasks.task import HeldOut, Rows
from pipelines.training.warm_start import HEAD, WarmStart
from schemas.configuration.training import TrainingSettings
from schemas.targets import Task

LEAST_OTHER = 1e-4  # least probability of all other targets together, where one is rejected
VALUE = ("value",)  # name of the one output of a task without labels


class EncoderTask(ABC):
    """Targets and losses over the outputs [n, k] of a linear head, one output for each of `labels` if there are any.

    `shift` and `scale` convert an output in training to the unit of the targets: value = shift + scale * output.
    """

    name: Task
    learns_rejections = True
    labels: Sequence[str] = ()
    shift: float = 0.0
    scale: float = 1.0

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> NDArray[Any]:
        """Return the targets [n] or [n, k] of the head's outputs in training."""

    @abstractmethod
    def probes(self, features: Features, examples: Sequence[Example], cs: Sequence[float]) -> list[Probe]:
        """Return a linear model on features [n, width] for each C (inverse regularisation), in the target's unit."""

    @abstractmethod
    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Return the NLL [n] of held-out rows, after the best temperature for them where the task has one."""

    def probe(self, embeddings: NDArray[np.float32], examples: Sequence[Example], settings: TrainingSettings) -> Probe:
        """Return the probe that a round must beat: a linear model on embeddings [n, width], in the target's unit."""
        return self.probes(embeddings, examples, [settings.probe_c or PROBE_C])[0]

    def first_head(
        self, embeddings: NDArray[np.float32], examples: Sequence[Example], settings: TrainingSettings
    ) -> Probe:
        """Return the head that training starts from, in the target's unit: the probe, unless a task overrides it."""
        return self.probe(embeddings, examples, settings)

    def rows(
        self,
        base: Encoder,
        examples: Sequence[Example],
        settings: TrainingSettings,
        champion: WarmStart | None = None,
    ) -> Rows:
        """Return the tokenised rows of `examples`, in their order."""
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
        """Return a first head (the probe if the method is "head") on the base encoder, or the champion's head and encoder."""
        torch.manual_seed(settings.seed)
        texts = [e.text for e in examples]
        if champion is None:
            encoder = trainable_copy(base, settings)
            first = self.probe if settings.method == "head" else self.first_head
            head = first(base.embed(texts), examples, settings)
        else:
            encoder = _encoder_of(champion, base, settings)
            head = self._extended_head(champion, encoder, base, examples, settings)
        kind = base.model.config.model_type
        return TextModel(
            with_fast_dropout(encoder, attention=encoder_family(kind).packs),
            base.width,
            head.weight / self.scale,
            (head.bias - self.shift) / self.scale,
            bf16=computes_bf16() if settings.bf16 is None else settings.bf16,
        )

    def kept(self, outputs: torch.Tensor, targets: torch.Tensor) -> NDArray[Any]:
        """Return all outputs [b, k]."""
        return np.asarray(outputs.numpy())

    def settle(self, model: TextModel, held: HeldOut, champion: WarmStart) -> None:  # noqa: B027 - classification overrides it
        """Do nothing: only softmax labels compete."""

    def finish(self, model: TextModel) -> None:
        """Fold shift and scale into the head, and switch to full precision."""
        model.bf16 = False
        with torch.no_grad():
            model.head.weight.mul_(self.scale)
            model.head.bias.mul_(self.scale).add_(self.shift)

    def _extended_head(
        self, champion: WarmStart, encoder: Any, base: Encoder, examples: Sequence[Example], settings: TrainingSettings
    ) -> Probe:
        """Return the champion's head in the order of this task's labels; new labels get a first head on its embeddings."""
        trained = champion.tensors(HEAD)
        index = {name: n for n, name in enumerate(champion.labels or VALUE) if name not in champion.untaught}
        weight, bias = (trained[name].numpy().astype(np.float64) for name in ("weight", "bias"))
        names = self.labels or VALUE
        if set(names) <= index.keys():
            rows = [index[name] for name in names]
            return Probe(weight[rows], bias[rows])
        head = self.first_head(base.embed_with(encoder, [e.text for e in examples]), examples, settings)
        old = [n for n, name in enumerate(names) if name in index]
        rows = [index[names[n]] for n in old]
        head.weight[old], head.bias[old] = weight[rows], bias[rows]
        return head

    def _teacher(
        self, champion: WarmStart, base: Encoder, texts: Sequence[str], settings: TrainingSettings
    ) -> NDArray[np.float32]:
        """Return the champion's outputs [n, k] in the order of this task's labels, NaN for a label it does not know."""
        head, known = champion.tensors(HEAD), list(champion.labels or VALUE)
        embeddings = base.embed_with(_encoder_of(champion, base, settings), texts)
        outputs = embeddings @ head["weight"].numpy().T + head["bias"].numpy()
        names = self.labels or VALUE
        teacher = np.full((len(texts), len(names)), np.nan, dtype=np.float32)
        for n, name in enumerate(names):
            if name in known:
                teacher[:, n] = outputs[:, known.index(name)]
        return teacher


def not_this(nll: torch.Tensor) -> torch.Tensor:
    """Return -log(1 - p) [n] from -log p [n]; bounded, because its gradient is not as p approaches 1."""
    return -torch.log1p(-(-nll).exp().clamp(max=1 - LEAST_OTHER))


def _encoder_of(champion: WarmStart, base: Encoder, settings: TrainingSettings) -> Any:
    return champion.apply(copy.deepcopy(base.model) if champion.is_whole else shared_copy(base.model), settings)
