"""Cluster near-duplicate texts around leaders: Jaccard similarity of character 3-grams of at least 0.9.

Similarity to a leader decides, so nothing is merged transitively. groups.py clusters the reference and a round's rows with it.

The search is exact (PartEnum: Arasu, Ganti and Kaushik 2006). Two similar sets differ in at most k grams, where k follows
from their sizes. If hashing distributes the grams over k + 1 parts, at least one part is equal in both sets. Each set is
indexed by the sum of hashes of each of its parts, and only sets that share a key are compared. Cost grows linearly with the
rows, and no similar pair is missed.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from serving.inference.normalise import folded

THRESHOLD = 0.9
CHUNK = 8192  # texts shingled at a time, so that they fit the processor's cache
CHUNK_GRAMS = 2_000_000  # and characters of theirs, each of which takes some 90 bytes
SKETCH_BITS = 256
MANY = 64  # texts under one key from which numpy is faster than a loop
MOST_NEAR = 8  # leaders listed for a text; more make no difference, as it lies between clusters anyway
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Clusters:
    """The leader of each text. Leaders are pairwise dissimilar.

    `leader[i]` is i itself if text i leads, else a leader or anchor similar to it. For anchors and texts that do not lead,
    `near[i]` lists up to MOST_NEAR similar leaders and anchors.
    """

    leader: list[int]
    near: dict[int, list[int]]


class Grams:
    """Sets of character 3-grams of case-folded texts with white space collapsed, as sorted integers.

    A gram is three code points of 21 bits: no two grams share a number.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        parts, sizes = [], []
        for start, end in _chunks(np.array([len(text) for text in texts], dtype=np.int64)):
            values, counts = _shingle(texts[start:end])
            parts.append(values)
            sizes.append(counts)
        self.values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
        self.sizes = np.concatenate(sizes) if sizes else np.zeros(0, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def of(self, row: int) -> frozenset[int]:
        """Return the grams of one text."""
        return frozenset(self.values[self.starts[row] : self.starts[row + 1]].tolist())


def cluster(texts: Sequence[str], anchors: int = 0, threshold: float = THRESHOLD) -> Clusters:
    """Return clusters of texts around leaders.

    A text that is similar to no earlier leader becomes one. The first `anchors` texts are compared with every other text
    whether they lead or not; a text similar to an anchor does not lead.

    Args:
        texts: in order of precedence.
        anchors: number of leading texts that are anchors.
        threshold: least Jaccard similarity of near-duplicates.

    """
    compare = _Comparison(Grams(texts), threshold)
    keys = dict(_shared_keys(compare.grams, threshold))
    index: dict[int, list[int]] = defaultdict(list)
    leader, near = list(range(len(texts))), dict[int, list[int]]()

    def alike(i: int) -> Iterator[int]:
        seen = {i}
        for key in keys[i]:
            others = index.get(key, ())
            for c in compare.likely(i, others) if len(others) > MANY else others:
                if c not in seen:
                    seen.add(c)
                    if compare.similar(i, c):
                        yield c

    for i, shared in keys.items():
        # an anchor can only have a leader above it; every other text may have an anchor or a leader
        leader[i] = next((c for c in alike(i) if i >= anchors or leader[c] == c), i)
        if leader[i] == i or i < anchors:
            for key in shared:
                index[key].append(i)
    for i in keys:
        # in a second pass, since leaders may come later in order
        if leader[i] != i or i < anchors:
            near[i] = sorted(islice(alike(i), MOST_NEAR))
    return Clusters(leader, near)


def _chunks(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges of texts: at most CHUNK of them, and CHUNK_GRAMS in all or a single text."""
    start, ends = 0, np.cumsum(sizes)
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        fitting = int(np.searchsorted(ends, before + CHUNK_GRAMS, side="right"))
        end = min(max(start + 1, fitting), start + CHUNK, len(sizes))
        yield start, end
        start = end


def _shingle(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the sorted distinct grams of all texts, concatenated, and the number of each text (at least 1)."""
    normal = [folded(text) for text in texts]
    lengths = np.array([len(text) for text in normal], dtype=np.int64)
    points = np.frombuffer("".join(normal).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    points = np.concatenate([points, np.zeros(2, dtype=np.uint64)])
    counts = np.maximum(1, lengths - 2)
    owner = np.repeat(np.arange(len(normal)), counts)
    begin = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.minimum(begin[owner] + offset, len(points) - 3)
    left = lengths[owner] - offset  # characters to the text's end; a text of fewer than 3 is one shorter gram
    grams = np.where(left > 0, points[at] + 1, 0) << np.uint64(42)
    grams |= np.where(left > 1, points[at + 1] + 1, 0).astype(np.uint64) << np.uint64(21)
    grams |= np.where(left > 2, points[at + 2] + 1, 0).astype(np.uint64)
    names, index = np.unique(grams, return_inverse=True)
    pairs = np.sort(owner * len(names) + index)
    pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]
    return names[pairs % len(names)], np.bincount(pairs // len(names), minlength=len(normal))


def _shared_keys(grams: Grams, threshold: float) -> Iterator[tuple[int, list[int]]]:
    """Yield for each text, in order, the keys that it shares with another text; texts without any are skipped.

    Similar sets have sizes in the same interval [threshold ** -i, threshold ** -(i + 1)), or in adjacent ones. So each set is
    indexed under its interval and the one below.
    """
    sizes = grams.sizes
    interval = np.floor(np.log(np.maximum(sizes, 1)) / -np.log(threshold) + 1e-9).astype(np.int64)
    owners, keys = [], []
    for start, end in _chunks(sizes):
        rows = np.arange(start, end)
        row = np.repeat(rows - start, sizes[rows])
        values = grams.values[grams.starts[rows[0]] : grams.starts[rows[-1] + 1]]
        hashes = _mix(values)
        for below in (0, 1):
            tag = interval[rows] - below
            largest = np.ceil(threshold ** -(tag + 2.0))
            parts = ((1 - threshold) / (1 + threshold) * 2 * largest + 1e-9).astype(np.int64) + 1
            part_of = (hashes >> np.uint64(33)) % parts[row].astype(np.uint64)
            first = np.cumsum(parts) - parts
            sums = np.zeros(int(parts.sum()), dtype=np.uint64)
            np.add.at(sums, first[row] + part_of.astype(np.int64), hashes)
            which = np.repeat(np.arange(len(rows)), parts)
            part = np.arange(len(which)) - first[which]
            # an empty part has the sum 0, so interval and part are mixed into the key
            keys.append(_mix(_mix(sums) + _mix((tag[which] * 4096 + part).astype(np.uint64))))
            owners.append(rows[which])
    owner, key = (
        np.concatenate(owners or [np.zeros(0, dtype=np.int64)]),
        np.concatenate(keys or [np.zeros(0, dtype=np.uint64)]),
    )
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    same = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(key), dtype=bool)
    shared[order[1:][same]] = shared[order[:-1][same]] = True
    owner, key = owner[shared], key[shared]
    order = np.argsort(owner, kind="stable")
    owner, key = owner[order], key[order]
    bounds = np.flatnonzero(np.diff(owner)) + 1
    for part_owner, part_key in zip(np.split(owner, bounds), np.split(key, bounds), strict=True):
        if len(part_owner):
            yield int(part_owner[0]), list(dict.fromkeys(part_key.tolist()))


class _Comparison:
    """Exact similarity tests, after a cheap bound that rules out most pairs.

    Two sets of a and b members have Jaccard similarity of at least t if and only if at most (1 - t) / (1 + t) * (a + b)
    members are in one set only. A sketch bounds that number from below: it has the parity of the grams hashed to each of 256
    bits, and two sets differ in at least as many grams as their sketches differ in bits.
    """

    def __init__(self, grams: Grams, threshold: float) -> None:
        self.grams, self._share = grams, (1 - threshold) / (1 + threshold)
        self._sizes: list[int] = grams.sizes.tolist()
        self._sketches = _sketches(grams)
        self._wide: dict[int, int] = {}
        self._sets: dict[int, frozenset[int]] = {}

    def likely(self, one: int, others: Sequence[int]) -> list[int]:
        """Return those of `others` that the bound does not rule out, the likeliest first."""
        candidates = np.array(others)
        bits = np.bitwise_count(self._sketches[candidates] ^ self._sketches[one]).sum(axis=1)
        most = self._share * (self.grams.sizes[one] + self.grams.sizes[candidates]) + 1e-9
        possible = np.flatnonzero(bits <= most)
        order: list[int] = candidates[possible[np.argsort(bits[possible], kind="stable")]].tolist()
        return order

    def similar(self, one: int, other: int) -> bool:
        """Return whether the Jaccard similarity is at least the threshold."""
        most = self._share * (self._sizes[one] + self._sizes[other]) + 1e-9
        if (self._sketch(one) ^ self._sketch(other)).bit_count() > most:
            return False
        return len(self._set(one) ^ self._set(other)) <= most

    def _sketch(self, row: int) -> int:
        if row not in self._wide:
            self._wide[row] = int.from_bytes(self._sketches[row].tobytes())
        return self._wide[row]

    def _set(self, row: int) -> frozenset[int]:
        if row not in self._sets:
            self._sets[row] = self.grams.of(row)
        return self._sets[row]


def _sketches(grams: Grams) -> NDArray[np.uint64]:
    """Return the sketches, [n, 4]: 256 bits a text."""
    parts = [np.zeros((0, SKETCH_BITS // 64), dtype=np.uint64)]
    for start, end in _chunks(grams.sizes):
        sizes = grams.sizes[start:end]
        values = grams.values[grams.starts[start] : grams.starts[start + len(sizes)]]
        bit = np.repeat(np.arange(len(sizes)), sizes) * SKETCH_BITS
        bit += (_mix(values) % np.uint64(SKETCH_BITS)).astype(np.int64)
        odd = (np.bincount(bit, minlength=len(sizes) * SKETCH_BITS) & 1).astype(np.uint8)
        parts.append(np.packbits(odd).view(np.uint64).reshape(len(sizes), -1))
    return np.concatenate(parts)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the integers hashed to 64 bits (finaliser of splitmix64)."""
    x = values * _MIX
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
