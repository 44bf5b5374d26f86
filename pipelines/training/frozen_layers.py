"""The layers below the first one that changes, run once: they stay the same in a round, and so does what comes out of them.

Turns token ids into the hidden states that the changing layers start from, and lets a model start from those: the `Inputs` of
an encoder's tasks, so that an epoch runs the layers above alone. It deliberately knows no labels and no optimiser.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.models.encoder import Encoder, TextModel, layer_of, layers_of

MAX_BYTES = 1 << 30


class Passthrough(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Stands in for a layer that is not to run."""

    def forward(self, hidden_states: torch.Tensor, *_args: object, **_options: object) -> torch.Tensor:
        """What came in."""
        return hidden_states


class Replay(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Stands in for the embeddings, and gives stored hidden states instead."""

    def __init__(self) -> None:
        super().__init__()
        self.states: torch.Tensor | None = None

    def forward(self, *_args: object, **_options: object) -> torch.Tensor | None:
        """The states of the batch at hand."""
        return self.states


@contextlib.contextmanager
def skipping(model: Any, numbers: range) -> Iterator[None]:
    """Inside, these layers of a base model let everything pass."""
    layers = layers_of(model)
    kept = {number: layers[number] for number in numbers}
    for number in kept:
        layers[number] = Passthrough()
    try:
        yield
    finally:
        for number, layer in kept.items():
            layers[number] = layer


@contextlib.contextmanager
def starting_from_states(model: Any, first: int) -> Iterator[Replay]:
    """Inside, a base model starts at layer `first`, from the states that are put into the `Replay`."""
    embeddings, replay = model.embeddings, Replay()
    model.embeddings = replay
    try:
        with skipping(model, range(first)):
            yield replay
    finally:
        model.embeddings = embeddings


class EncoderInputs:
    """n tokenised texts. A model is fed with what its lower layers gave once, if any of them do not change."""

    def __init__(self, encoder: Encoder, ids: Sequence[Sequence[int]]) -> None:
        self._encoder, self._ids = encoder, [torch.tensor(row) for row in ids]
        self.lengths: NDArray[np.int64] = np.array([len(row) for row in ids], dtype=np.int64)
        self._states: dict[int, LowerStates] = {}

    @contextlib.contextmanager
    def feeding(self, model: TextModel) -> Iterator[Callable[[Sequence[int]], torch.Tensor]]:
        """Inside: row numbers [b] -> outputs [b, k]. After it the model is whole again."""
        first = first_changing(model)
        if not first:
            yield lambda rows: model(*padded([self._ids[row] for row in rows], self._encoder))
            return
        if first not in self._states:
            self._states = {first: LowerStates(self._encoder, self._ids, first)}
        states = self._states[first]
        with starting_from_states(model.base, first) as replay:

            def forward(rows: Sequence[int]) -> torch.Tensor:
                replay.states, mask = states.batch(rows)
                # The embeddings are set aside: only the shape of what stands in for token ids matters.
                outputs: torch.Tensor = model(mask, mask)
                return outputs

            yield forward


class LowerStates:
    """Hidden states of n texts below layer `first`, kept while they fit into MAX_BYTES, else run again."""

    def __init__(self, encoder: Encoder, ids: Sequence[torch.Tensor], first: int, max_bytes: int = MAX_BYTES) -> None:
        self._encoder, self._ids, self._first = encoder, ids, first
        self._kept: dict[int, torch.Tensor] = {}
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        fitting = np.flatnonzero(np.cumsum(lengths) <= max_bytes // (4 * encoder.width))
        order = fitting[np.argsort(lengths[fitting], kind="stable")].tolist()
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            states, _ = self._run(rows)
            self._kept.update({row: states[n, : lengths[row]].clone() for n, row in enumerate(rows)})

    def batch(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """States [len(rows), longest, width] and attention mask [len(rows), longest], padded with zeros."""
        if any(row not in self._kept for row in rows):
            states, mask = self._run(rows)
            return states, mask
        states = nn.utils.rnn.pad_sequence([self._kept[row] for row in rows], batch_first=True)
        return states, padded([self._ids[row] for row in rows], self._encoder)[1]

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def _run(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        base = self._encoder.model
        ids, mask = padded([self._ids[row] for row in rows], self._encoder)
        with skipping(base, range(self._first, len(layers_of(base)))):
            states: torch.Tensor = base(input_ids=ids, attention_mask=mask).last_hidden_state
        return states, mask


def first_changing(model: TextModel) -> int:
    """Number of the lowest layer that has something to train; 0 if embeddings have, too."""
    named = model.encoder.named_parameters()
    layers = {layer_of(name) for name, parameter in named if parameter.requires_grad}
    return 0 if None in layers else min((layer for layer in layers if layer is not None), default=0)


def padded(ids: Sequence[torch.Tensor], encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [n, longest], int64."""
    pad = encoder.model.config.pad_token_id or 0
    lengths = torch.tensor([len(row) for row in ids])
    mask = (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).long()
    padded_ids: torch.Tensor = nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=pad)
    return padded_ids, mask
