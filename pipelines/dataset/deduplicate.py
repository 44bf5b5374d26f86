"""Near-duplicates: which texts say the same.

Turns texts into clusters around leaders, by Jaccard similarity of character 3-grams >= 0.9. build.py clusters the reference
and a round's rows with it. It deliberately merges nothing transitively, and knows nothing of labels or sides.

Exact, by signatures instead of sketches (PartEnum: Arasu, Ganti and Kaushik 2006). Two sets that similar differ in at most
k of their grams, where k is known from their sizes; deal the grams out to k + 1 parts by hash, and at least one part is the
same in both. So each set is filed under the sum of hashes of each of its parts, and only sets filed under one key are
compared. Cost grows with the rows, no similar pair is missed, and there is no probability to tune.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.9
CHUNK = 8192  # texts shingled at a time: what fits the processor's cache
SKETCH_BITS = 256
MANY = 64  # texts under one key, from where numpy is faster than a loop
MOST_NEAR = 8  # of a text among thousands of likes more are not looked for: it stands between clusters anyway
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Clusters:
    """Who leads whom. Leaders are pairwise dissimilar.

    `leader[i]` is a leader or anchor that text i is similar to, or i itself if it leads; `near[i]` lists up to MOST_NEAR of
    the leaders and anchors that text i is similar to, for texts that don't lead and for anchors.
    """

    leader: list[int]
    near: dict[int, list[int]]


class Grams:
    """Sets of character 3-grams of case-folded texts with white space collapsed, as sorted integers.

    A gram is three code points of 21 bits: no two grams share a number.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        parts, sizes = [], []
        for start in range(0, len(texts), CHUNK):
            values, counts = _shingle(texts[start : start + CHUNK])
            parts.append(values)
            sizes.append(counts)
        self.values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
        self.sizes = np.concatenate(sizes) if sizes else np.zeros(0, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def of(self, row: int) -> frozenset[int]:
        """The grams of one text."""
        return frozenset(self.values[self.starts[row] : self.starts[row + 1]].tolist())


def jaccard(one: str, other: str) -> float:
    """Similarity of two texts, from 0 to 1."""
    grams = Grams([one, other])
    a, b = grams.of(0), grams.of(1)
    return len(a & b) / len(a | b)


def cluster(texts: Sequence[str], anchors: int = 0, threshold: float = THRESHOLD) -> Clusters:
    """Cluster texts around leaders, in their order.

    A text that is similar to no leader before it becomes one. The first `anchors` texts are compared with every other one
    whether they lead or not; what is similar to an anchor does not lead.

    Args:
        texts: in order of precedence.
        anchors: how many of the first are such.
        threshold: least Jaccard similarity of a pair.

    """
    compare = _Comparison(Grams(texts), threshold)
    keys = dict(_shared_keys(compare.grams, threshold))
    filed: dict[int, list[int]] = defaultdict(list)
    leader, near = list(range(len(texts))), dict[int, list[int]]()

    def alike(i: int) -> Iterator[int]:
        seen = {i}
        for key in keys[i]:
            others = filed.get(key, ())
            for c in compare.likely(i, others) if len(others) > MANY else others:
                if c not in seen:
                    seen.add(c)
                    if compare.similar(i, c):
                        yield c

    for i, own in keys.items():
        # an anchor may be led by a leader alone, all others by whatever is filed before them
        leader[i] = next((c for c in alike(i) if i >= anchors or leader[c] == c), i)
        if leader[i] == i or i < anchors:
            for key in own:
                filed[key].append(i)
    for i in keys:
        # now that all leaders are known: also those that came later
        if leader[i] != i or i < anchors:
            near[i] = sorted(islice(alike(i), MOST_NEAR))
    return Clusters(leader, near)


def _shingle(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Sorted different grams of each text, one after the other, and how many each has (at least 1)."""
    normal = [" ".join(text.casefold().split()) for text in texts]
    lengths = np.array([len(text) for text in normal], dtype=np.int64)
    points = np.frombuffer("".join(normal).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    points = np.concatenate([points, np.zeros(2, dtype=np.uint64)])
    counts = np.maximum(1, lengths - 2)
    owner = np.repeat(np.arange(len(normal)), counts)
    begin = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.minimum(begin[owner] + place, len(points) - 3)
    left = lengths[owner] - place  # characters from here to the text's end: a text of 0, 1 or 2 is a gram of its own
    found = np.where(left > 0, points[at] + 1, 0) << np.uint64(42)
    found |= np.where(left > 1, points[at + 1] + 1, 0).astype(np.uint64) << np.uint64(21)
    found |= np.where(left > 2, points[at + 2] + 1, 0).astype(np.uint64)
    names, index = np.unique(found, return_inverse=True)
    pairs = np.sort(owner * len(names) + index)
    pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]
    return names[pairs % len(names)], np.bincount(pairs // len(names), minlength=len(normal))


def _shared_keys(grams: Grams, threshold: float) -> Iterator[tuple[int, list[int]]]:
    """Per text, in order, those of its keys that another text has too; texts without any are left out.

    Sizes are cut into intervals [threshold ** -i, threshold ** -(i + 1)): similar sets lie in one or in neighbours, so each
    set is filed under its own interval and the one below.
    """
    sizes = grams.sizes
    interval = np.floor(np.log(np.maximum(sizes, 1)) / -np.log(threshold) + 1e-9).astype(np.int64)
    owners, keys = [], []
    for start in range(0, len(sizes), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(sizes)))
        own = np.repeat(rows - start, sizes[rows])
        values = grams.values[grams.starts[rows[0]] : grams.starts[rows[-1] + 1]]
        hashes = _mix(values)
        for below in (0, 1):
            tag = interval[rows] - below
            largest = np.ceil(threshold ** -(tag + 2.0))
            parts = ((1 - threshold) / (1 + threshold) * 2 * largest + 1e-9).astype(np.int64) + 1
            place = (hashes >> np.uint64(33)) % parts[own].astype(np.uint64)
            first = np.cumsum(parts) - parts
            sums = np.zeros(int(parts.sum()), dtype=np.uint64)
            np.add.at(sums, first[own] + place.astype(np.int64), hashes)
            which = np.repeat(np.arange(len(rows)), parts)
            part = np.arange(len(which)) - first[which]
            # a part without grams has the sum 0: a key like any other, if interval and part are in it
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
    """Which texts are similar to a given one: exactly, after a bound that leaves little to compare.

    The Jaccard similarity of sets of a and b members is at least t if and only if at most (1 - t) / (1 + t) * (a + b) of
    them are in one alone. The bound is a sketch, the parity of the grams in each of 256 bits: two sets differ in at least
    as many grams as their sketches in bits.
    """

    def __init__(self, grams: Grams, threshold: float) -> None:
        self.grams, self._share = grams, (1 - threshold) / (1 + threshold)
        self._sizes: list[int] = grams.sizes.tolist()
        self._sketches = _sketches(grams)
        self._wide: dict[int, int] = {}
        self._sets: dict[int, frozenset[int]] = {}

    def likely(self, one: int, others: Sequence[int]) -> list[int]:
        """Those of many `others` that may be similar, the likeliest first."""
        found = np.array(others)
        bits = np.bitwise_count(self._sketches[found] ^ self._sketches[one]).sum(axis=1)
        most = self._share * (self.grams.sizes[one] + self.grams.sizes[found]) + 1e-9
        possible = np.flatnonzero(bits <= most)
        order: list[int] = found[possible[np.argsort(bits[possible], kind="stable")]].tolist()
        return order

    def similar(self, one: int, other: int) -> bool:
        """Whether the Jaccard similarity is at least the threshold."""
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
    """[n, 4]: 256 bits a text."""
    parts = [np.zeros((0, SKETCH_BITS // 64), dtype=np.uint64)]
    for start in range(0, len(grams.sizes), CHUNK):
        sizes = grams.sizes[start : start + CHUNK]
        values = grams.values[grams.starts[start] : grams.starts[start + len(sizes)]]
        place = np.repeat(np.arange(len(sizes)), sizes) * SKETCH_BITS
        place += (_mix(values) % np.uint64(SKETCH_BITS)).astype(np.int64)
        odd = (np.bincount(place, minlength=len(sizes) * SKETCH_BITS) & 1).astype(np.uint8)
        parts.append(np.packbits(odd).view(np.uint64).reshape(len(sizes), -1))
    return np.concatenate(parts)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter integers over 64 bits (the finaliser of splitmix64)."""
    x = values * _MIX
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
