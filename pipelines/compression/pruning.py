"""Structured pruning: remove attention heads and feed-forward units from every layer of a transformer.

Turns an encoder into a narrower one of the same architecture, by slicing its matrices. distillation.py prunes a student before
training it. Pruning needs no labels, and removes equally many parts from each layer, so that the graph stays regular.

The most important parts stay. A part's importance is the squared change of the outputs if its activation is removed, to second
order by the Gauss-Newton approximation (LeCun et al. 1990; heads: Michel et al. 2019, units: Molchanov et al. 2019). Random signs
over the outputs estimate it in one backward pass (Hutchinson 1990).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipelines.models.encoder import layers_of
from pipelines.models.families import Parts, parts_of


def prune(
    encoder: Any,
    heads: float,
    feed_forward: float,
    outputs_of: Callable[[Sequence[str]], torch.Tensor],
    batches: Sequence[Sequence[str]],
    seed: int,
) -> None:
    """Keep the most important share of each layer's heads and feed-forward units, at least one of each.

    Args:
        encoder: a base model whose weights may be changed; sliced in place.
        heads: share of the heads, above 0, at most 1.
        feed_forward: share of the feed-forward units, likewise.
        outputs_of: texts -> outputs [n, m] through `encoder`, scaled so that squared distances are comparable.
        batches: texts, similar lengths together.
        seed: of the random signs.

    Raises:
        UnknownArchitecture: encoders of this `model_type` cannot be pruned.

    """
    parts = parts_of(encoder.config.model_type)
    scores = importance(encoder, parts, outputs_of, batches, seed)
    for layer, (head_scores, unit_scores) in zip(layers_of(encoder), scores, strict=True):
        _slice(layer, parts, _highest(head_scores, heads), _highest(unit_scores, feed_forward))


def importance(
    encoder: Any,
    parts: Parts,
    outputs_of: Callable[[Sequence[str]], torch.Tensor],
    batches: Sequence[Sequence[str]],
    seed: int,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each layer the importance of its heads [h] and feed-forward units [u]: squared changes summed over texts."""
    layers = layers_of(encoder)
    sizes = [size for layer in layers for size in (layer.get_submodule(parts.attention).attention_head_size, 1)]
    total: list[torch.Tensor] = []
    draw = torch.Generator().manual_seed(seed)
    with _activations(encoder, parts) as seen:
        for texts in batches:
            seen.clear()
            outputs = outputs_of(texts)
            signs = torch.randint(0, 2, outputs.shape, generator=draw) * 2.0 - 1.0
            gradients = torch.autograd.grad((outputs * signs).sum(), seen)
            changes = [
                (a * g).sum(dim=1).unflatten(1, (-1, size)).sum(dim=2).square().sum(dim=0).detach()
                for a, g, size in zip(seen, gradients, sizes, strict=True)
            ]
            total = [a + b for a, b in zip(total, changes, strict=True)] if total else changes
    return list(zip(total[::2], total[1::2], strict=True))


@contextmanager
def _activations(encoder: Any, parts: Parts) -> Iterator[list[torch.Tensor]]:
    """Yield a list that each forward pass fills: for each layer the outputs [n, length, width] of its heads and its units."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for layer in layers_of(encoder)
        for name in (parts.merge, parts.narrow)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _highest(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Return the indices of the share with the highest scores, in ascending order."""
    kept = max(1, round(share * len(scores)))
    return scores.argsort(descending=True, stable=True)[:kept].sort().values


def _slice(layer: Any, parts: Parts, heads: torch.Tensor, units: torch.Tensor) -> None:
    attention = layer.get_submodule(parts.attention)
    size = attention.attention_head_size
    lanes = (heads.unsqueeze(1) * size + torch.arange(size)).flatten()
    for name in parts.inner:
        _keep_outputs(attention.get_submodule(name), lanes)
    _keep_inputs(layer.get_submodule(parts.merge), lanes)
    for name, value in zip(parts.shape, (len(heads), len(lanes)), strict=True):
        setattr(attention, name, value)
    _keep_outputs(layer.get_submodule(parts.widen), units)
    _keep_inputs(layer.get_submodule(parts.narrow), units)


def _keep_outputs(linear: nn.Linear, kept: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[kept].clone())
    linear.bias = nn.Parameter(linear.bias.detach()[kept].clone())
    linear.out_features = len(kept)


def _keep_inputs(linear: nn.Linear, kept: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[:, kept].clone())
    linear.in_features = len(kept)
