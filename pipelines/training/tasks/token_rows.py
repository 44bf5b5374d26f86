"""Token rows of a causal language model: turn token ids into the negative log-likelihoods of each row's last tokens.

generation.py makes `TokenRows`; fitting.py reads them.

Where only upper layers carry adapters, the layers below are frozen: they run once per row, and each epoch runs the others alone.
training/frozen_layers.py does the same for encoders. Rows whose states would take more than `max_bytes` run through all layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.training.frozen_layers import MAX_BYTES, Passthrough, Recorder, Replay, first_changing, replaced
from pipelines.training.tasks.task import Forward
from serving.inference.decoder_runtime import token_logprobs
from serving.inference.passes import passes


class TokenRows:
    """Token ids of n rows and, for each, how many of the last tokens are the completion's."""

    def __init__(self, ids: Sequence[list[int]], completions: Sequence[int], *, max_bytes: int = MAX_BYTES) -> None:
        self._ids, self._completions, self._max_bytes = list(ids), list(completions), max_bytes
        self.lengths: NDArray[np.int64] = np.array([len(row) for row in ids], dtype=np.int64)
        # First trainable layer -> states [length, width] of each row.
        self._states: dict[int, list[torch.Tensor]] = {}

    @contextmanager
    def feeding(self, model: Any) -> Iterator[Forward]:
        """Yield the function from row numbers [b] to negative log-likelihoods [b, k]; afterwards the model is whole again."""
        first = first_changing(model)
        if not first or self._state_bytes(model) > self._max_bytes:
            yield lambda rows: self._forward(model, rows)
            return
        if first not in self._states:
            self._states = {first: self._run_below(model, first)}
        states, replay = self._states[first], Replay()

        def forward(rows: Sequence[int]) -> torch.Tensor:
            replay.states = _right_aligned_states([states[row] for row in rows])
            return self._forward(model, rows)

        with replaced(layers_of(model), {0: replay} | {number: Passthrough() for number in range(1, first)}):
            yield forward

    def _state_bytes(self, model: Any) -> int:
        return int(self.lengths.sum() * model.config.hidden_size * next(model.parameters()).element_size())

    def _forward(self, model: Any, rows: Sequence[int]) -> torch.Tensor:
        return -token_logprobs(model, [self._ids[row] for row in rows], [self._completions[row] for row in rows])

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def _run_below(self, model: Any, first: int) -> list[torch.Tensor]:
        """Return the inputs [length, width] of layer `first` for each row."""
        recorder, result, layers = Recorder(), [torch.empty(0)] * len(self._ids), layers_of(model)
        order = np.argsort(self.lengths, kind="stable").tolist()
        model.eval()
        above = {number: Passthrough() for number in range(first + 1, len(layers))}
        with replaced(layers, {first: recorder} | above):
            for start, end in passes(self.lengths[order]):
                rows = order[start:end]
                token_logprobs(model, [self._ids[row] for row in rows], [1] * len(rows))
                for row, states in zip(rows, recorder.states, strict=True):
                    result[row] = states[len(states) - len(self._ids[row]) :].clone()
        return result


def layers_of(model: Any) -> Any:
    """Return the ModuleList of a model's layers, lowest first, whatever the model's family calls it."""
    count = model.config.num_hidden_layers
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)


def _right_aligned_states(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return states [b, longest, width], padded with zeros at the start."""
    longest = max(len(one) for one in states)
    return torch.stack([nn.functional.pad(one, (0, 0, longest - len(one), 0)) for one in states])
