"""Passes through a model: which rows run together.

Turns the lengths of rows into ranges of a bounded number of tokens. Training, embedding and evaluation use it for runs without
gradients; serving's own batches are made in batching.py.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

ROWS, TOKENS = (
    32,
    4096,
)  # at most: more tokens leave the processor's caches, and attention's memory grows with their square


def passes(lengths: Sequence[int] | NDArray[np.int64], rows: int = ROWS) -> Iterator[tuple[int, int]]:
    """Yield ranges (start, end) of rows in ascending order of length: `rows` and TOKENS at most, padding included, or one row."""
    start = 0
    while start < len(lengths):
        end = start + 1
        while end < min(start + rows, len(lengths)) and (end + 1 - start) * int(lengths[end]) <= TOKENS:
            end += 1
        yield start, end
        start = end
