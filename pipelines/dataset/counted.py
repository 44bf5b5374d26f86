"""Count rows by label, or by bin where targets are numbers.

manifest.py and report/profile.py count with it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor, log10

import numpy as np

from schemas.targets import Task, labels_of

FEW_VALUES = 12  # up to this many different numbers, each is a bin of its own
OUTLYING = 1  # percent of rows at either end that lie outside the bins


@dataclass(frozen=True)
class Counted:
    """The names of labels or bins, in order; `edges` [len(names) - 1] separate the bins."""

    task: Task
    names: Sequence[str]
    edges: Sequence[float] = field(default=())

    @classmethod
    def over(cls, task: Task, labels: Sequence[str], targets: Sequence[str]) -> "Counted":
        """Return the bins for these targets; for tasks with labels, the taxonomy `labels`."""
        if task != "regression" or not targets:
            return cls(task, labels)
        numbers = sorted({float(target) for target in targets})
        if len(numbers) <= FEW_VALUES:
            return cls(task, [f"{n:g}" for n in numbers], [(a + b) / 2 for a, b in pairwise(numbers)])
        low, high = np.percentile([float(target) for target in targets], (OUTLYING, 100 - OUTLYING))
        edges = ticks(float(low), float(high), about=10)
        between = [f"{a:g} to {b:g}" for a, b in pairwise(edges)]
        return cls(task, [f"below {edges[0]:g}", *between, f"{edges[-1]:g} and more"], edges)

    def of(self, target: str) -> Sequence[str]:
        """Return the labels of one target, or its bin."""
        if not self.edges:
            return labels_of(self.task, target)
        return (self.names[int(np.searchsorted(self.edges, float(target), side="right"))],)

    def rows(self, targets: Iterable[str]) -> Mapping[str, int]:
        """Return name -> number of targets, without names of none."""
        counts = Counter(name for target in targets for name in self.of(target))
        unnamed = sorted(counts.keys() - set(self.names))  # retired labels
        return {name: counts[name] for name in [*self.names, *unnamed] if counts[name]}


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers, a step of 1, 2 or 5 (times a power of ten) apart, that enclose `low` and `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(n * step, 10) for n in range(floor(low / step + 1e-9), ceil(high / step - 1e-9) + 1)]
