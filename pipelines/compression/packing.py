"""Packing: the exported graph runs a batch without padding, outside attention.

Wraps a trained encoder so that the tokens of a batch run as one sequence, and form padded rows only in attention. export.py
exports it; inputs and outputs are those of the wrapped model. An encoder spends most time on parts that treat each token alone,
so skipping padding is faster where lengths differ (Zhai et al. 2022, ByteTransformer). Training uses padded batches sorted by
length instead.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from pipelines.models.encoder import TextModel, mean_pool

NAME = "packed"  # under which transformers knows `attend`
# Added to the scores of padding, which are those of the row's last token: e^-60 of that is nothing in float32, yet no denormal
# number. With denormals, at -1e9, the softmax took half of the time of batches with much padding (docs/lab-notes.md).
PADDING = -60.0
TOO_FAR = -1e9  # added to the scores of tokens outside the window, which may be high


@dataclass(frozen=True)
class Layout:
    """The mapping between a padded batch [n, length] and its sequence of t tokens without padding."""

    mask: torch.Tensor  # [n, length], 1 for a token, 0 for padding
    tokens: torch.Tensor  # [t], index of each token in the flat batch
    cells: torch.Tensor  # [n * length], index of each cell's token in the sequence; padding has its row's last

    @classmethod
    def of(cls, mask: torch.Tensor) -> "Layout":
        """Return the layout of an attention mask [n, length]."""
        flat = mask.reshape(-1)
        return cls(mask, flat.nonzero().squeeze(-1), (flat.cumsum(0) - 1).clamp(min=0))

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the tokens [t, ...] of padded rows [n, length, ...]."""
        return rows.flatten(0, 1).index_select(0, self.tokens)

    def lay_out(self, sequence: torch.Tensor) -> torch.Tensor:
        """Return rows [n, length, width] of a sequence [t, width]; padding holds its row's last token."""
        return sequence.index_select(0, self.cells).unflatten(0, self.mask.shape)


def attend(
    _: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    __: torch.Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    sliding_window: int | None = None,
    **___: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention within each row: query, key and value [1, heads, t, width] -> [1, t, heads, width].

    With a `sliding_window`, a token attends to those at a smaller distance alone.
    """
    heads = query.shape[1]

    def rows(packed: torch.Tensor) -> torch.Tensor:
        laid_out = layout.lay_out(packed[0].transpose(0, 1).flatten(1))
        return laid_out.unflatten(-1, (heads, -1)).transpose(1, 2)

    absent = (1 - layout.mask.to(query.dtype))[:, None, None, :] * PADDING
    if sliding_window is not None:
        positions = torch.arange(layout.mask.shape[1], device=query.device)
        far = (positions[:, None] - positions[None, :]).abs() >= sliding_window
        absent = absent + far.to(query.dtype)[None, None] * TOO_FAR
    weights = torch.softmax(rows(query) @ rows(key).transpose(2, 3) * scaling + absent, dim=-1)
    attended = layout.pack((weights @ rows(value)).transpose(1, 2).flatten(2))
    return attended.unflatten(-1, (heads, -1)).unsqueeze(0), None


class PackedModel(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Wrap a TextModel without adapters, changing it: input_ids and attention_mask [n, length] -> outputs [n, k]."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        model.encoder.set_attn_implementation(NAME)
        self.encoder, self.head = model.encoder, model.head
        # Models of the RoBERTa family number positions from padding_idx + 1.
        self.first_position = getattr(model.encoder.embeddings, "padding_idx", -1) + 1

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the outputs [n, k]: logits, or one number."""
        layout = Layout.of(attention_mask)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden = self.encoder(
            input_ids=layout.pack(input_ids).unsqueeze(0),
            position_ids=layout.pack(positions).unsqueeze(0) + self.first_position,
            layout=layout,
        ).last_hidden_state[0]
        outputs: torch.Tensor = self.head(mean_pool(layout.lay_out(hidden), attention_mask))
        return outputs
