"""The words of the dataset: an example, and the rows left out.

Every step of build.py turns lists of `Example` into lists of `Example`, and says in `Drops` what it left out. It deliberately
holds no step.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# Where a label came from, the most trusted first: that order decides whose row stands for a cluster.
SOURCES = ("seed", "domain", "reviewer", "correction", "confirmation", "rating", "rejection")
FROM_FILES = frozenset({"seed", "domain", "reviewer"})
VOTES = {"seed": 1000.0, "domain": 1000.0, "reviewer": 10.0}
SHOWN = 120  # characters of a dropped row's example


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One labelled text that may train; a `rejection` says what its label is not.

    `order` sorts by time: the ISO 8601 time of the feedback, empty for rows of files.
    """

    text: str
    label: str
    source: str
    person: str | None = None
    weight: float = 1.0
    order: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    audit: bool = False

    @property
    def rejects(self) -> bool:
        """Whether the label is complementary: not this one."""
        return self.source == "rejection"

    @property
    def votes(self) -> float:
        """What the row weighs when a cluster's rows disagree."""
        return self.weight * VOTES.get(self.source, 1.0)


class Drops:
    """Rows left out, by reason, with one example each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, text: str, rows: int = 1) -> None:
        """Count rows."""
        self.counts[reason] += rows
        if text < self.examples.get(reason, "\U0010ffff"):  # the same one whatever the order
            self.examples[reason] = text[:SHOWN]

    def keep(self, rows: Iterable[Example], good: Callable[[Example], bool], reason: str) -> list[Example]:
        """The good rows; the others are counted."""
        kept = []
        for row in rows:
            if good(row):
                kept.append(row)
            else:
                self.add(reason, row.text)
        return kept
