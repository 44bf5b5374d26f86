"""Near-duplicates: which texts say the same.

Turns texts into leaders: each text's first predecessor with Jaccard similarity of character 3-grams >= 0.9, or itself. The
dataset uses it within its rows and against the reference. It deliberately merges nothing transitively.

Exact by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007): two sets that similar share one of their rarest
tenth of grams, so only those are indexed.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil

THRESHOLD = 0.9


def grams(text: str) -> frozenset[str]:
    """Character 3-grams of the case-folded text with white space collapsed."""
    normal = " ".join(text.casefold().split())
    return frozenset(normal[i : i + 3] for i in range(max(1, len(normal) - 2)))


def leaders(texts: Sequence[str], threshold: float = THRESHOLD) -> list[int]:
    """For each text the index of its leader: the first earlier leader that is similar, else its own index."""
    sets = [grams(text) for text in texts]
    frequency = Counter(gram for found in sets for gram in found)
    index: dict[str, list[int]] = defaultdict(list)
    result: list[int] = []
    for i, own in enumerate(sets):
        prefix = sorted(own, key=lambda gram: (frequency[gram], gram))[: len(own) - ceil(threshold * len(own)) + 1]
        candidates = sorted({leader for gram in prefix for leader in index[gram]})
        leader = next((c for c in candidates if _similar(own, sets[c], threshold)), i)
        result.append(leader)
        if leader == i:
            for gram in prefix:
                index[gram].append(i)
    return result


def _similar(one: frozenset[str], other: frozenset[str], threshold: float) -> bool:
    if min(len(one), len(other)) < threshold * max(len(one), len(other)):
        return False
    shared = len(one & other)
    return shared >= threshold * (len(one) + len(other) - shared)
