"""A replica: a few layers of a base model with random weights, timed in place of the whole.

Turns `BaseFacts` and batch shapes into seconds on this machine. Time depends on shapes, not on values, so no weights are needed
and a model that is not on this machine can be timed. cost.py adds the layers up.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pipelines.models import decoder, encoder
from pipelines.models.base_facts import BaseFacts
from pipelines.models.dropout import with_fast_dropout
from pipelines.models.families import encoder_family
from schemas.configuration.training import TrainingSettings
from serving.inference.decoder_runtime import compute_dtype, token_logprobs, with_one_head

REPEATS, DEEP = 2, 4  # runs of each batch; layers of the deeper replica
WORDS = 1000  # of an encoder's vocabulary: looking a token up costs the same in a small table
LABELS = 16

Batch = tuple[int, int, int]  # rows, tokens of each, of which the completion's
Clock = Callable[[], float]


class Replica:
    """A trainable model of `layers` layers in the shape of a base model."""

    def __init__(self, facts: BaseFacts, layers: int, settings: TrainingSettings) -> None:
        """Build the replica; `settings` decide adapters and precision, on every layer."""
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        changes = dict(facts.config) | {_layers_key(facts): layers}
        if not facts.is_decoder:  # special tokens must lie in the smaller vocabulary
            changes |= {key: 1 for key in changes if key.endswith("_token_id")} | {"vocab_size": WORDS}
        changes = {
            k: v
            for k, v in changes.items()
            if k not in ("model_type", "architectures", "layer_types", "dtype", "torch_dtype")
        }
        config = AutoConfig.for_model(facts.kind, **changes)
        adapted = settings.model_copy(update={"adapted_layers": layers})
        self.is_decoder = facts.is_decoder
        self._words = min(WORDS, int(config.vocab_size))
        if facts.is_decoder:
            base = with_one_head(AutoModelForCausalLM.from_config(config).to(compute_dtype()))
            self.model: Any = with_fast_dropout(decoder.trainable_copy(_base(base), adapted), attention=False)
        else:
            base = AutoModel.from_config(config, attn_implementation="eager")
            inner = with_fast_dropout(
                encoder.trainable_copy(_base(base), adapted), attention=encoder_family(facts.kind).packs
            )
            width = facts.number("width")
            bf16 = encoder.computes_bf16() if settings.bf16 is None else settings.bf16
            self.model = encoder.TextModel(inner, width, np.zeros((LABELS, width)), np.zeros(LABELS), bf16=bf16)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained)

    def seconds(self, batch: Batch, clock: Clock, *, training: bool) -> float:
        """Return the seconds of one batch, the least of REPEATS: a whole step in training, else a forward pass."""
        self.model.train(training)
        return min(self._once(batch, clock, training) for _ in range(REPEATS))

    def kept_bytes(self, batch: Batch) -> int:
        """Return the bytes of the tensors that a forward pass keeps for the backward pass, without weights."""
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        self.model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._loss(batch)
        total = sum(kept.values())
        del loss
        return total

    def token_seconds(self, clock: Clock) -> float:
        """Return the seconds of generating one token after a prompt, without LoRA, the least of some repeats."""
        from transformers import DynamicCache

        self.model.eval()
        cache, times = DynamicCache(config=self.model.config), []
        plain = self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext()
        with torch.inference_mode(), plain:
            self.model(input_ids=torch.randint(2, self._words, (1, 32)), past_key_values=cache, use_cache=True)
            for _ in range(4 * REPEATS):
                began = clock()
                self.model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
                times.append(clock() - began)
        return min(times)

    def _once(self, batch: Batch, clock: Clock, training: bool) -> float:
        began = clock()
        with torch.set_grad_enabled(training):
            loss = self._loss(batch)
        if training:
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
            self._optimizer.step()
        return clock() - began

    def _loss(self, batch: Batch) -> torch.Tensor:
        rows, tokens, completion = batch
        ids = torch.randint(2, self._words, (rows, tokens))
        if self.is_decoder:
            return -token_logprobs(self.model, ids.tolist(), [completion] * rows).mean()
        outputs: torch.Tensor = self.model(ids, torch.ones_like(ids))
        return torch.nn.functional.cross_entropy(outputs, torch.zeros(rows, dtype=torch.long))


@dataclass(frozen=True)
class Layers:
    """What one layer takes of a mean batch, and the rest of the model: embeddings, head, optimizer.

    Seconds of a training step and of a forward pass, bytes kept by the largest batch, seconds of generating one token with all
    layers (0 for an encoder).
    """

    train_layer: float
    train_rest: float
    run_layer: float
    run_rest: float
    kept_layer: float
    kept_rest: float
    token_seconds: float


def time_layers(
    facts: BaseFacts, batches: Sequence[Batch], largest: Batch, settings: TrainingSettings, clock: Clock
) -> Layers:
    """Return what a layer and the rest take, from two replicas of different depth: the difference is the layers'."""
    total = facts.number("layers")
    depths = (1, max(2, min(DEEP, total)))
    train, run, kept, token = [], [], [], []
    for depth in depths:
        replica = Replica(facts, depth, settings)
        train.append(float(np.mean([replica.seconds(batch, clock, training=True) for batch in batches])))
        run.append(float(np.mean([replica.seconds(batch, clock, training=False) for batch in batches])))
        kept.append(float(replica.kept_bytes(largest)))
        token.append(replica.token_seconds(clock) if facts.is_decoder else 0.0)
    apart = depths[1] - depths[0]
    slopes = [max(0.0, pair[1] - pair[0]) / apart for pair in (train, run, kept, token)]
    rests = [max(0.0, pair[0] - slope) for pair, slope in zip((train, run, kept, token), slopes, strict=True)]
    return Layers(slopes[0], rests[0], slopes[1], rests[1], slopes[2], rests[2], rests[3] + total * slopes[3])


def _layers_key(facts: BaseFacts) -> str:
    return next(key for key in ("num_hidden_layers", "n_layers", "n_layer") if key in facts.config)


def _base(model: Any) -> Any:
    """Return what `trainable_copy` takes of an opened base model."""
    return SimpleNamespace(model=model.eval())
