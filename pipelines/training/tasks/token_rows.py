"""Token rows of a causal language model: turn token ids into the negative log-likelihoods of each row's last tokens.

generation.py makes `TokenRows`; fitting.py reads them.

Where only upper layers carry adapters, the layers below are frozen: they run once per row, and each epoch runs the others alone.
training/frozen_layers.py does the same for encoders.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.models.encoder import layer_of
from pipelines.training.frozen_layers import Passthrough
from pipelines.training.tasks.task import Forward
from serving.inference.decoder_runtime import token_logprobs

BATCH = 32


class Stored(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Replace a layer: return the stored states if `replays`, else store the incoming ones."""

    def __init__(self) -> None:
        super().__init__()
        self.states: torch.Tensor | None = None
        self.replays = False

    def forward(self, hidden_states: torch.Tensor, *_args: object, **_options: object) -> torch.Tensor | None:
        """Return the states of the current batch."""
        if not self.replays:
            self.states = hidden_states
        return self.states


class TokenRows:
    """Token ids of n rows and, for each, how many of the last tokens are the completion's."""

    def __init__(self, ids: Sequence[list[int]], completions: Sequence[int]) -> None:
        self._ids, self._completions = list(ids), list(completions)
        self.lengths: NDArray[np.int64] = np.array([len(row) for row in ids], dtype=np.int64)
        # First trainable layer -> states [length, width] of each row.
        self._states: dict[int, list[torch.Tensor]] = {}

    @contextmanager
    def feeding(self, model: Any) -> Iterator[Forward]:
        """Yield the function from row numbers [b] to negative log-likelihoods [b, k]; afterwards the model is whole again."""
        first = first_changing(model)
        if not first:
            yield lambda rows: self._forward(model, rows)
            return
        if first not in self._states:
            self._states = {first: self._run_below(model, first)}
        states, stored = self._states[first], Stored()
        stored.replays = True

        def forward(rows: Sequence[int]) -> torch.Tensor:
            stored.states = _right_aligned_states([states[row] for row in rows])
            return self._forward(model, rows)

        with replaced(
            layers_of(model), lambda number: number < first, lambda number: stored if not number else Passthrough()
        ):
            yield forward

    def _forward(self, model: Any, rows: Sequence[int]) -> torch.Tensor:
        return -token_logprobs(model, [self._ids[row] for row in rows], [self._completions[row] for row in rows])

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def _run_below(self, model: Any, first: int) -> list[torch.Tensor]:
        """Return the inputs [length, width] of layer `first` for each row."""
        stored, result = Stored(), [torch.empty(0)] * len(self._ids)
        order = np.argsort(self.lengths, kind="stable").tolist()
        model.eval()
        with replaced(
            layers_of(model),
            lambda number: number >= first,
            lambda number: stored if number == first else Passthrough(),
        ):
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                token_logprobs(model, [self._ids[row] for row in rows], [1] * len(rows))
                assert stored.states is not None
                for row, states in zip(rows, stored.states, strict=True):
                    result[row] = states[len(states) - len(self._ids[row]) :].clone()
        return result


def layers_of(model: Any) -> Any:
    """Return the ModuleList of a model's layers, lowest first, whatever the model's family calls it."""
    count = model.config.num_hidden_layers
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)


def first_changing(model: Any) -> int:
    """Return the number of the lowest trainable layer; 0 if modules below the layers are trainable too."""
    layers = {layer_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return 0 if None in layers else min((layer for layer in layers if layer is not None), default=0)


@contextmanager
def replaced(layers: Any, which: Callable[[int], bool], by: Callable[[int], nn.Module]) -> Iterator[None]:
    """Replace the layers selected by `which` with those made by `by`, inside the `with`."""
    kept = {number: layer for number, layer in enumerate(layers) if which(number)}
    for number in kept:
        layers[number] = by(number)
    try:
        yield
    finally:
        for number, layer in kept.items():
            layers[number] = layer


def _right_aligned_states(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return states [b, longest, width], padded with zeros at the start."""
    longest = max(len(one) for one in states)
    return torch.stack([nn.functional.pad(one, (0, 0, longest - len(one), 0)) for one in states])
