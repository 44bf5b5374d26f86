"""Cost: the time and memory that a round and serving take with a base model, estimated before it is loaded or downloaded.

Turns `BaseFacts` and a `Workload` into a `Cost`. replica.py times layers on this machine and counts the bytes that a training
step keeps for the backward pass; this module adds them up as a round runs them. `make bench-train` (part advise) compares
estimates with measurements.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.model_selection.replica import Batch, Clock, Layers, time_layers
from pipelines.model_selection.workload import Workload
from pipelines.models.base_facts import BaseFacts
from pipelines.models.encoder import computes_bf16
from pipelines.training.fitting import batch_size
from pipelines.training.frozen_layers import MAX_BYTES
from schemas.configuration.training import TrainingSettings
from serving.inference.decoder_runtime import compute_dtype

QUANTILES = (0.25, 0.75)  # of the lengths: batches hold texts of similar length
# A round's process with torch, transformers, peft and ONNX loaded, before any model; a serving worker likewise.
ROUND_BYTES, WORKER_BYTES, TORCH_WORKER_BYTES = 560_000_000, 190_000_000, 520_000_000
EXPORT_BYTES, EXPORT_COPIES = 430_000_000, 4  # export: its own, and copies of the weights in float32
SAVE_COPIES = 2  # saving a decoder: copies of its weights
STEP_SHARE = 1.8  # a step's memory over what it keeps: gradients, temporary tensors and the allocator's gaps
BF16_BYTES = 350_000_000  # what an encoder, whose weights are float32, takes beside where training runs in bfloat16
EMBED_FLOAT32 = 2.6  # embeddings run in float32: their seconds over those in bfloat16, where training uses it
SERVED_SHARE = 0.75  # int8 on ONNX Runtime: its seconds over those of torch in training's precision
INT8_COPIES = 2  # of the weights in int8: as read, and as arranged for multiplication


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of a round's training, and of serving.

    `pass_seconds` is one training pass over all rows, `scoring_seconds` one without gradients, `once_seconds` what runs once.
    `serve_seconds` is one text of median length (generation: one token), `serve_bytes` a worker with one version.
    """

    pass_seconds: float
    scoring_seconds: float
    once_seconds: float
    train_bytes: float
    serve_seconds: float
    serve_bytes: float

    def train_seconds(self, passes: float, scorings: float) -> float:
        """Return the seconds of a training with so many passes over all rows."""
        return self.once_seconds + passes * self.pass_seconds + scorings * self.scoring_seconds


def estimate(facts: BaseFacts, work: Workload, settings: TrainingSettings, clock: Clock = time.perf_counter) -> Cost:
    """Return the estimated cost of a base model on this machine; it takes some seconds to time its layers."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    size = batch_size(work.rows, settings)
    batches = [_batch(facts, work, quantile, size) for quantile in QUANTILES]
    layers = time_layers(facts, batches, _batch(facts, work, 1.0, size), settings, clock)
    total = facts.number("layers")
    trained = min(total, settings.adapted_layers or (total - total // 2 if facts.is_decoder else total))
    if settings.method == "full":
        trained = total
    steps = -(-work.rows // size)
    whole = layers.run_layer * total + layers.run_rest
    once = steps * whole * (0 if facts.is_decoder else EMBED_FLOAT32 if computes_bf16() else 1)
    if trained < total:
        once += steps * (layers.run_layer * (total - trained) + layers.run_rest)
    return Cost(
        pass_seconds=steps * (layers.train_layer * trained + layers.train_rest),
        scoring_seconds=steps * (layers.run_layer * trained + layers.run_rest),
        once_seconds=once,
        train_bytes=_train_bytes(facts, work, layers, trained),
        serve_seconds=layers.token_seconds if facts.is_decoder else SERVED_SHARE * whole / size,
        serve_bytes=_serve_bytes(facts),
    )


def _batch(facts: BaseFacts, work: Workload, quantile: float, rows: int) -> Batch:
    """Return the shape of a batch of rows at this quantile of the lengths."""
    tokens = int(np.quantile(work.cut_lengths, quantile))
    completion = int(np.quantile(np.minimum(work.completions, work.max_new_tokens), quantile))
    tokens = max(3, min(tokens, facts.context or tokens))
    return rows, tokens, max(1, min(completion, tokens - 1))


def _weight_bytes(facts: BaseFacts) -> int:
    """Return the bytes of each weight of the loaded base model."""
    return int(torch.finfo(compute_dtype() if facts.is_decoder else torch.float32).bits) // 8


def _train_bytes(facts: BaseFacts, work: Workload, layers: Layers, trained: int) -> float:
    """Return the peak memory of a round's process: that of training, or of writing the model."""
    each = _weight_bytes(facts)
    weights = facts.parameters * each
    states = 0.0
    if trained < facts.number("layers"):
        states = min(MAX_BYTES, float(work.rows * work.cut_lengths.mean() * facts.number("width") * each))
    step = STEP_SHARE * (layers.kept_layer * trained + layers.kept_rest)
    copies = SAVE_COPIES * weights if facts.is_decoder else EXPORT_BYTES + EXPORT_COPIES * weights
    read = 4 * facts.parameters if facts.path and facts.path.suffix == ".gguf" else 0  # dequantised in float32 at first
    bf16 = BF16_BYTES if computes_bf16() and not facts.is_decoder else 0
    return ROUND_BYTES + weights + max(bf16 + states + max(step, copies), read)


def _serve_bytes(facts: BaseFacts) -> float:
    """Return the memory of a worker that serves one version; during a swap it holds one more."""
    if facts.is_decoder:
        return TORCH_WORKER_BYTES + facts.parameters * _weight_bytes(facts)
    return WORKER_BYTES + facts.parameters * INT8_COPIES
