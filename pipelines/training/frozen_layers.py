"""Frozen layers of an encoder: layers below the first trainable one run once per row, and each epoch reuses their output.

Turns token ids into the hidden states that the first trainable layer takes, and lets a model start from those. `EncoderInputs`
are the `Inputs` of the encoder's tasks; token_rows.py does the same for decoders.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.models.encoder import Encoder, TextModel, layer_of, layers_of
from pipelines.models.families import encoder_family
from serving.inference.passes import passes

MAX_BYTES = 1 << 30


class Passthrough(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Replace a layer that must not run; `as_tuple` if layers of the family return tuples."""

    def __init__(self, *, as_tuple: bool = False) -> None:
        super().__init__()
        self._as_tuple = as_tuple

    def forward(self, hidden_states: torch.Tensor, *_args: object, **_options: object) -> Any:
        """Return the input unchanged."""
        return (hidden_states, None) if self._as_tuple else hidden_states


class Recorder(Passthrough):
    """Replace a layer, and keep the states that reach it."""

    states: torch.Tensor

    def forward(self, hidden_states: torch.Tensor, *_args: object, **_options: object) -> Any:
        """Return the input unchanged."""
        self.states = hidden_states
        return super().forward(hidden_states)


class Replay(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Replace the embeddings or the lowest layer, and return stored hidden states instead."""

    def __init__(self) -> None:
        super().__init__()
        self.states: torch.Tensor | None = None

    def forward(self, *_args: object, **_options: object) -> torch.Tensor | None:
        """Return the states of the current batch."""
        return self.states


@contextlib.contextmanager
def replaced(layers: Any, replacements: Mapping[int, nn.Module]) -> Iterator[None]:
    """Replace the layers with these numbers inside the `with`."""
    kept = {number: layers[number] for number in replacements}
    for number, replacement in replacements.items():
        replacement.attention_type = getattr(layers[number], "attention_type", None)  # ModernBERT's choice of a mask
        layers[number] = replacement
    try:
        yield
    finally:
        for number, layer in kept.items():
            layers[number] = layer


@contextlib.contextmanager
def starting_from_states(model: Any, first: int) -> Iterator[Replay]:
    """Start a base model at layer `first` inside the `with`, from the states in the yielded `Replay`."""
    embeddings, replay = model.embeddings, Replay()
    model.embeddings = replay
    try:
        with replaced(layers_of(model), {number: Passthrough(as_tuple=_tuples(model)) for number in range(first)}):
            yield replay
    finally:
        model.embeddings = embeddings


class EncoderInputs:
    """Tokenised texts [n], fed to a model from the stored output of its frozen lower layers, if it has any."""

    def __init__(self, encoder: Encoder, ids: Sequence[Sequence[int]]) -> None:
        self._encoder, self._ids = encoder, [torch.tensor(row) for row in ids]
        self.lengths: NDArray[np.int64] = np.array([len(row) for row in ids], dtype=np.int64)
        self._states: dict[int, LowerStates] = {}

    @contextlib.contextmanager
    def feeding(self, model: TextModel) -> Iterator[Callable[[Sequence[int]], torch.Tensor]]:
        """Yield the function from row numbers [b] to outputs [b, k]; after the `with` the model is whole again."""
        first = first_changing(model.encoder)
        if not first:
            yield lambda rows: model(*padded([self._ids[row] for row in rows], self._encoder))
            return
        if first not in self._states:
            self._states = {first: LowerStates(self._encoder, self._ids, first)}
        states = self._states[first]
        with starting_from_states(model.base, first) as replay:

            def forward(rows: Sequence[int]) -> torch.Tensor:
                replay.states, mask = states.batch(rows)
                # `Replay` ignores the token ids, so that any tensor of their shape will do.
                outputs: torch.Tensor = model(mask, mask)
                return outputs

            yield forward


class LowerStates:
    """Hidden states of n texts below layer `first`; kept while they fit into MAX_BYTES, else computed again."""

    def __init__(self, encoder: Encoder, ids: Sequence[torch.Tensor], first: int, max_bytes: int = MAX_BYTES) -> None:
        self._encoder, self._ids, self._first = encoder, ids, first
        self._kept: dict[int, torch.Tensor] = {}
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        fitting = np.flatnonzero(np.cumsum(lengths) <= max_bytes // (4 * encoder.width))
        order = fitting[np.argsort(lengths[fitting], kind="stable")].tolist()
        for start, end in passes(lengths[order]):
            rows = order[start:end]
            states, _ = self._run(rows)
            self._kept.update({row: states[n, : lengths[row]].clone() for n, row in enumerate(rows)})

    def batch(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states [len(rows), longest, width] and attention mask [len(rows), longest], padded with zeros."""
        if any(row not in self._kept for row in rows):
            states, mask = self._run(rows)
            return states, mask
        states = nn.utils.rnn.pad_sequence([self._kept[row] for row in rows], batch_first=True)
        return states, padded([self._ids[row] for row in rows], self._encoder)[1]

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def _run(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        base, layers = self._encoder.model, layers_of(self._encoder.model)
        ids, mask = padded([self._ids[row] for row in rows], self._encoder)
        as_tuple = _tuples(base)
        recorder = Recorder(as_tuple=as_tuple)
        above = {number: Passthrough(as_tuple=as_tuple) for number in range(self._first + 1, len(layers))}
        with replaced(layers, {self._first: recorder} | above):
            base(input_ids=ids, attention_mask=mask)
        return recorder.states, mask


def _tuples(model: Any) -> bool:
    return encoder_family(model.config.model_type).tuples


def first_changing(model: Any) -> int:
    """Return the number of a base model's lowest trainable layer; 0 if modules outside the layers are trainable too."""
    layers = {layer_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return 0 if None in layers else min((layer for layer in layers if layer is not None), default=0)


def padded(ids: Sequence[torch.Tensor], encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask [n, longest], int64."""
    pad = encoder.model.config.pad_token_id or 0
    lengths = torch.tensor([len(row) for row in ids])
    mask = (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).long()
    padded_ids: torch.Tensor = nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=pad)
    return padded_ids, mask
