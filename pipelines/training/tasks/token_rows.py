"""Rows of tokens, and how a causal language model is fed with them: whole, or from what its frozen lower layers gave once.

Turns token ids into the negative log-likelihoods of each row's last tokens. generation.py makes them, fitting.py asks. It
deliberately knows no texts, no task and no optimiser.

Where adapters sit on upper layers alone, the layers below never change in a round: they run once a row, and an epoch costs the
rest. training/frozen_layers.py does the same for encoders.
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
    """Stands in for a layer: gives what was stored, or else stores what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.states: torch.Tensor | None = None
        self.gives = False

    def forward(self, hidden_states: torch.Tensor, *_args: object, **_options: object) -> torch.Tensor | None:
        """The states of the batch at hand."""
        if not self.gives:
            self.states = hidden_states
        return self.states


class TokenRows:
    """Token ids of n rows, with how many at the end are the answer's."""

    def __init__(self, ids: Sequence[list[int]], answers: Sequence[int]) -> None:
        self._ids, self._answers = list(ids), list(answers)
        self.lengths: NDArray[np.int64] = np.array([len(row) for row in ids], dtype=np.int64)
        self._states: dict[
            int, list[torch.Tensor]
        ] = {}  # first layer that changes -> states [length, width] of each row

    @contextmanager
    def feeding(self, model: Any) -> Iterator[Forward]:
        """Inside: row numbers [b] -> negative log-likelihoods [b, k]. After it the model is whole again."""
        first = first_changing(model)
        if not first:
            yield lambda rows: self._forward(model, rows)
            return
        if first not in self._states:
            self._states = {first: self._run_below(model, first)}
        states, stored = self._states[first], Stored()
        stored.gives = True

        def forward(rows: Sequence[int]) -> torch.Tensor:
            stored.states = _right_aligned_states([states[row] for row in rows])
            return self._forward(model, rows)

        with replaced(
            layers_of(model), lambda number: number < first, lambda number: stored if not number else Passthrough()
        ):
            yield forward

    def _forward(self, model: Any, rows: Sequence[int]) -> torch.Tensor:
        return -token_logprobs(model, [self._ids[row] for row in rows], [self._answers[row] for row in rows])

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def _run_below(self, model: Any, first: int) -> list[torch.Tensor]:
        """What reaches layer `first`, row by row."""
        stored, found = Stored(), [torch.empty(0)] * len(self._ids)
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
                found_here = zip(rows, stored.states, strict=True)
                for row, states in found_here:
                    found[row] = states[len(states) - len(self._ids[row]) :].clone()
        return found


def layers_of(model: Any) -> Any:
    """The ModuleList of a model's layers, lowest first, wherever its family keeps it."""
    count = model.config.num_hidden_layers
    return next(found for found in model.modules() if isinstance(found, nn.ModuleList) and len(found) == count)


def first_changing(model: Any) -> int:
    """Number of the lowest layer that has something to train; 0 if what is below the layers has, too."""
    layers = {layer_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return 0 if None in layers else min((layer for layer in layers if layer is not None), default=0)


@contextmanager
def replaced(layers: Any, which: Callable[[int], bool], by: Callable[[int], nn.Module]) -> Iterator[None]:
    """Inside, these layers are others."""
    kept = {number: layer for number, layer in enumerate(layers) if which(number)}
    for number in kept:
        layers[number] = by(number)
    try:
        yield
    finally:
        for number, layer in kept.items():
            layers[number] = layer


def _right_aligned_states(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """[b, longest, width], zeros before."""
    longest = max(len(one) for one in states)
    return torch.stack([nn.functional.pad(one, (0, 0, longest - len(one), 0)) for one in states])
