"""TF-IDF: a linear model on the weighted n-grams of a text, which needs no base model.

Turns texts into a vocabulary and sparse features, and a head on them into a model. training/baselines.py fits it,
compression/tfidf_graph.py exports it. It is hard to beat where words decide, rows are few, or the base model does not know the
language (Wang and Manning 2012).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipelines.models.probe import Probe
from serving.inference.ngrams import CHARACTER, Vocabulary, ngrams

MOST_NGRAMS = 60_000
MOST_WEIGHTS = 25_000_000  # 100 MB of float32
LEAST_TEXTS = 2  # that have an n-gram; fewer teach it nothing about others


@dataclass(frozen=True)
class Ngrams:
    """A vocabulary of v n-grams, with the inverse document frequency [v] of each and whether it is of characters [v]."""

    vocabulary: Vocabulary
    idf: NDArray[np.float64]

    @property
    def of_characters(self) -> NDArray[np.bool_]:
        """Return which n-grams [v] are of characters; the others are of words."""
        return np.array([name[0] == CHARACTER for name in self.vocabulary.names], dtype=bool)

    def features(self, texts: Sequence[str]) -> csr_array:
        """Return the weights [n, v] of each text's n-grams: (1 + log count) * idf, words and characters each of length 1."""
        counted = [
            np.unique(np.array(self.vocabulary.encode(text), dtype=np.int64), return_counts=True) for text in texts
        ]
        starts = np.cumsum([0, *(len(ids) for ids, _ in counted)], dtype=np.int64)
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *(ids for ids, _ in counted)])
        counts = np.concatenate([np.ones(0), *(count for _, count in counted)])
        values = (1 + np.log(counts)) * self.idf[ids]
        rows, characters = np.repeat(np.arange(len(texts)), np.diff(starts)), self.of_characters[ids]
        for kind in (False, True):
            members = characters == kind
            lengths = np.sqrt(np.bincount(rows[members], values[members] ** 2, minlength=len(texts)))
            values[members] /= lengths[rows[members]]
        return csr_array((values, ids, starts), shape=(len(texts), len(self.idf)))


@dataclass(frozen=True)
class TfidfModel:
    """N-grams and a head on them."""

    ngrams: Ngrams
    head: Probe

    def outputs(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the outputs [n, k] of texts."""
        return self.head.outputs(self.ngrams.features(texts))


def count_ngrams(texts: Sequence[str], outputs: int) -> Ngrams:
    """Return the n-grams that most of n texts have, as many as fit beside `outputs` columns of weights."""
    counts = Counter[str]()
    for text in texts:
        counts.update(set(ngrams(text)))
    known = [(n, name) for name, n in counts.items() if n >= LEAST_TEXTS]
    most = min(MOST_NGRAMS, MOST_WEIGHTS // max(1, outputs))
    kept = sorted(known, key=lambda pair: (-pair[0], pair[1]))[:most]
    names = sorted(name for _, name in kept)
    idf = np.log((1 + len(texts)) / (1 + np.array([counts[name] for name in names], dtype=np.float64))) + 1
    return Ngrams(Vocabulary(names), idf)
