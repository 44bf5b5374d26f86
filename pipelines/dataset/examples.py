"""Define `Example`, which every step of build.py takes and returns, and `Drops`, which counts the rows left out."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# Origin of a label, the most trusted first. The order decides which row represents a cluster.
SOURCES = (
    "seed",
    "domain",
    "reviewer",
    "settled",
    "correction",
    "confirmation",
    "rating",
    "rejection",
    "unchallenged",
)
FROM_FILES = frozenset({"seed", "domain", "reviewer"})
CURATED = FROM_FILES | {"settled"}  # labels of settled rounds train, but are no fair sample and are never held out
UNCHALLENGED = "unchallenged"  # a prediction that nobody answered; it has no vote beside people or files
VOTES = {"seed": 1000.0, "domain": 1000.0, "reviewer": 10.0, "settled": 10.0}
SHOWN = 120  # characters shown of a dropped row


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One labelled text that may train.

    A rejection names a label that the text does not have. `order` is the ISO 8601 time of the feedback in UTC, and empty for
    rows of files.
    """

    text: str
    label: str
    source: str
    person: str | None = None
    weight: float = 1.0
    order: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def rejects(self) -> bool:
        """Return whether the label is complementary: the text does not have it."""
        return self.source == "rejection"

    @property
    def votes(self) -> float:
        """Return the weight of the row in the vote of its cluster."""
        return self.weight * VOTES.get(self.source, 1.0)


class Drops:
    """Counts of rows left out, by reason, with one example each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, text: str, rows: int = 1) -> None:
        """Count dropped rows under a reason, and keep the first text in order as its example."""
        self.counts[reason] += rows
        if text < self.examples.get(reason, "\U0010ffff"):
            self.examples[reason] = text[:SHOWN]

    def keep(self, rows: Iterable[Example], good: Callable[[Example], bool], reason: str) -> list[Example]:
        """Return the rows that satisfy `good`; count the others under `reason`."""
        kept = []
        for row in rows:
            if good(row):
                kept.append(row)
            else:
                self.add(reason, row.text)
        return kept
