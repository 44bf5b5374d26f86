"""The graph that serves: padding is left out of everything but attention.

Wraps a trained encoder so that the tokens of a batch run as one sequence without padding, and are laid out in rows only
where they attend to each other. compression.py exports it; inputs, outputs and answers stay those of the model it wraps.
Most of an encoder's time goes into what treats each token alone, and rows of a batch are seldom of one length (Zhai et al.
2022, ByteTransformer). It deliberately trains nothing: what is trained is padded, and sorted by length instead.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from pipelines.models.encoder import TextModel, mean_pool

NAME = "packed"  # of the attention below, among those that transformers knows
FAR_BELOW = -1e9  # added to what attention may not look at


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a padded batch [n, length] are in a sequence of t tokens without padding, and back."""

    mask: torch.Tensor  # [n, length], 1 where a token is
    tokens: torch.Tensor  # [t], place of each token in the flat batch
    places: torch.Tensor  # [n * length], place of each cell's token in the sequence; that of another one where none is

    @classmethod
    def of(cls, mask: torch.Tensor) -> "Layout":
        """The layout of an attention mask [n, length]."""
        flat = mask.reshape(-1)
        return cls(mask, flat.nonzero().squeeze(-1), (flat.cumsum(0) - 1).clamp(min=0))

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, length, ...] -> [t, ...]."""
        return rows.flatten(0, 1).index_select(0, self.tokens)

    def lay_out(self, sequence: torch.Tensor) -> torch.Tensor:
        """[t, width] -> [n, length, width]; cells without a token hold another token's numbers."""
        return sequence.index_select(0, self.places).unflatten(0, self.mask.shape)


def attend(
    _: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    __: torch.Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    **___: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each row to itself: query, key and value [1, heads, t, width] -> [1, t, heads, width]."""
    heads = query.shape[1]

    def rows(of: torch.Tensor) -> torch.Tensor:
        laid_out = layout.lay_out(of[0].transpose(0, 1).flatten(1))
        return laid_out.unflatten(-1, (heads, -1)).transpose(1, 2)

    absent = (1 - layout.mask.to(query.dtype))[:, None, None, :] * FAR_BELOW
    weights = torch.softmax(rows(query) @ rows(key).transpose(2, 3) * scaling + absent, dim=-1)
    found = layout.pack((weights @ rows(value)).transpose(1, 2).flatten(2))
    return found.unflatten(-1, (heads, -1)).unsqueeze(0), None


class PackedModel(nn.Module):  # type: ignore[misc]  # torch is not followed
    """A TextModel without adapters, which it takes over: input_ids and attention_mask [n, length] -> outputs [n, k]."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        model.encoder.set_attn_implementation(NAME)
        self.encoder, self.head = model.encoder, model.head
        # RoBERTa and its family count positions from after that of padding.
        self.first_position = getattr(model.encoder.embeddings, "padding_idx", -1) + 1

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Outputs: logits, or a number."""
        layout = Layout.of(attention_mask)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden = self.encoder(
            input_ids=layout.pack(input_ids).unsqueeze(0),
            position_ids=layout.pack(positions).unsqueeze(0) + self.first_position,
            layout=layout,
        ).last_hidden_state[0]
        outputs: torch.Tensor = self.head(mean_pool(layout.lay_out(hidden), attention_mask))
        return outputs
