"""Dropout with masks made from random integers, in place of torch's masks of single Bernoulli draws.

Turns a model to be trained into one with the same dropout at a fraction of the cost. The tasks call `with_fast_dropout` on
their training copies. torch draws each element of a mask alone and on one thread: on a CPU that took a third of a step's time.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

NAME = "fast_dropout"  # under which transformers knows `attend`
LEVELS = 1 << 16  # values of the integers that a probability is compared with


class FastDropout(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Set elements to zero with probability `p` in training, and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return values of the same shape."""
        return dropped(values, self.p) if self.training else values


def dropped(values: torch.Tensor, p: float) -> torch.Tensor:
    """Return `values` after dropout with probability `p`, rounded to 1/65,536; torch's seed decides which."""
    if p == 0:
        return values
    seed = int(torch.randint(1 << 62, ()))
    count = values.numel()
    draws = np.random.Generator(np.random.SFC64(seed)).integers(0, 1 << 64, -(-count // 4), dtype=np.uint64)
    integers = torch.from_numpy(draws.view(np.int16)[:count]).view(values.shape)
    lost = round(p * LEVELS)
    mask = (integers >= lost - LEVELS // 2).to(values.dtype).mul_(LEVELS / (LEVELS - lost))
    return values * mask


def attend(
    _: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention [n, length, heads, width] of queries, keys and values [n, heads, length, width]."""
    scores = (query * scaling) @ key.transpose(2, 3)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    # The product below rounds weights to the type of the values: dropped in that type, they take half the memory.
    weights = dropped(weights.to(value.dtype), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


def with_fast_dropout(model: Any, *, attention: bool) -> Any:
    """Return `model`, changed in place: its dropout modules and, with `attention`, the dropout within attention."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))
    if attention:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, eager_mask)
        model.set_attn_implementation(NAME)
    return model
