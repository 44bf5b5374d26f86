"""Text inputs: texts become the ids that a version's graph reads, and ids the graph's arrays.

`inputs_of` chooses by the manifest: a base model's tokens, or n-grams (ngrams.py). The encoder runtime calls it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from schemas.manifests import ModelManifest
from serving.inference.ngrams import Vocabulary

Arrays = dict[str, NDArray[np.generic]]


class TextInputs(Protocol):
    """How a version reads texts."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; their number is what the text costs."""

    def arrays(self, encoded: Sequence[Sequence[int]]) -> Arrays:
        """Return the graph's inputs for n encoded texts, each [n, longest]."""


class TokenInputs:
    """A base model's tokens: `input_ids` and `attention_mask`."""

    def __init__(self, directory: Path, max_length: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, truncated to the model's length."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts))]

    def arrays(self, encoded: Sequence[Sequence[int]]) -> Arrays:
        """Return token ids and attention mask, int64, padded with zeros."""
        ids, mask = padded(encoded), padded([[1] * len(tokens) for tokens in encoded])
        return {"input_ids": ids, "attention_mask": mask}


class NgramInputs:
    """N-grams: `ids` of each text's different n-grams, and how often each occurs in it (`counts`, 0 for padding)."""

    def __init__(self, directory: Path) -> None:
        self._vocabulary = Vocabulary.open(directory)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text's n-grams, as often as each occurs."""
        return [self._vocabulary.encode(text) for text in texts]

    def arrays(self, encoded: Sequence[Sequence[int]]) -> Arrays:
        """Return ids, int64, and counts, float32; the longest text of a batch without known n-grams has one with count 0."""
        counted = [np.unique(np.array(ids, dtype=np.int64), return_counts=True) for ids in encoded]
        counts = padded([count.tolist() for _, count in counted])
        return {"ids": padded([ids.tolist() for ids, _ in counted]), "counts": counts.astype(np.float32)}


def inputs_of(manifest: ModelManifest, directory: Path) -> TextInputs:
    """Return how a version reads texts."""
    return NgramInputs(directory) if manifest.kind == "tfidf" else TokenInputs(directory, manifest.max_length)


def padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return rows of different lengths as [n, longest], padded with zeros; at least one column."""
    result = np.zeros((len(rows), max([1, *map(len, rows)])), dtype=np.int64)
    for n, row in enumerate(rows):
        result[n, : len(row)] = row
    return result
