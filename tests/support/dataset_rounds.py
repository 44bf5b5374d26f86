"""Simulated rounds of feedback, and an independent look for leaks; test_dataset_split.py and bench/dataset.py share them.

Texts are random walks over words; each round brings new ones, near-duplicates of what is there, and rows that bridge two.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import ceil

import numpy as np

from pipelines.dataset.build import Dataset, Sources, build
from pipelines.dataset.cleaning.deduplicate import THRESHOLD
from pipelines.dataset.examples import Example
from pipelines.dataset.files import FileRow
from pipelines.dataset.sources.queue_labels import QueueRows
from pipelines.dataset.split import cluster_key
from pipelines.feature_store.store import FeedbackRow
from schemas.setting_groups import DatasetSettings, ModelSettings
from schemas.settings import Settings
from tests.support.fakes import FILLERS, TOPICS

LABELS = list(TOPICS)
START = datetime(2026, 1, 1, tzinfo=UTC)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Ledger:
    """The registry's split ledger, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def sides(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: self.kept[key] for key in keys if key in self.kept}

    def record_sides(self, sides: Mapping[str, str]) -> dict[str, str]:
        self.kept = {**sides, **self.kept}
        return {key: self.kept[key] for key in sides}


def no_embedding(texts: Sequence[str]) -> "np.ndarray":
    """Stands where the quarantine is off."""
    return np.zeros((len(texts), 1), dtype=np.float32)


def said(text: str, label: str, number: int, *, user: str | None = None, kind: str = "correction") -> FeedbackRow:
    """One feedback."""
    return FeedbackRow(
        feedback_id=f"f{number}",
        prediction_id=f"p{number}",
        kind=kind,
        value=label,
        user=user or f"u{number % 97}",
        time=START + timedelta(seconds=number),
        text=text,
        predicted_label=LABELS[number % len(LABELS)],
        model_version="v",
        metadata={},
    )


def sentence(draw: random.Random, label: str) -> str:
    """About 90 characters of a topic's words among fillers and made-up words."""
    words = [draw.choice(TOPICS[label]) for _ in range(3)] + draw.choices(FILLERS, k=4)
    words += ["".join(draw.choices(LETTERS, k=draw.randint(3, 9))) for _ in range(8)]
    draw.shuffle(words)
    return " ".join(words)


def edited(draw: random.Random, text: str, at: int | None = None) -> str:
    """The text with one letter changed."""
    place = draw.randrange(len(text)) if at is None else at
    return f"{text[:place]}{draw.choice(LETTERS)}{text[place + 1 :]}"


@dataclass
class Simulation:
    """Rounds over growing feedback. After each: how many pairs leak, how many rows changed side."""

    seed: int
    rows: int
    duplicates: float = 0.1
    bridges: float = 0.05
    absent: float = 0.1
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.ledger, self.given, self.pending = Ledger(), list[FeedbackRow](), list[str]()
        self.side: dict[str, str] = {}
        self.leaks = self.changed = self.pairs = 0
        self.ever_trained, self.judged_audits = set[str](), set[str]()
        self.late = 0  # audit texts that judge although a near-duplicate, still given, trained in an earlier round
        self.audited, self.waiting = list[FileRow](), dict[str, int]()  # text -> rounds until its mark expires
        self.dropped: Counter[str] = Counter()
        made = [(sentence(self.draw, label), label) for label in LABELS * 20]
        self.files = [FileRow(*row) for row in made[:30]]
        self.reference = [FileRow(*row) for row in made[30:]]

    def run(self, rounds: int) -> None:
        """Run rounds."""
        for _ in range(rounds):
            self.round()

    def round(self) -> Dataset:
        """One round: new feedback, some of the old absent, the dataset built, its sides looked at."""
        self.grow()
        self.label()
        present = [row for row in self.given if self.draw.random() >= self.absent]
        self.draw.shuffle(present)
        found = self.build(present)
        self._look(found, {row.text for row in present})
        return found

    def label(self) -> None:
        """Label some of the waiting audit texts, let others expire, and mark new ones that no round has used."""
        for text, left in list(self.waiting.items()):
            labelled = self.draw.random() < 0.4
            if labelled:
                self.audited.append(FileRow(text, self.draw.choice(LABELS)))
            if labelled or left == 0:
                del self.waiting[text]
            else:
                self.waiting[text] = left - 1
        done = {row.text for row in self.audited}
        for row in self.given[-self.rows :]:
            marked = self.draw.random() < 0.1 and row.text not in done
            if marked and not self.ledger.sides([cluster_key("m", row.text)]):
                self.waiting.setdefault(row.text, 2)

    def build(self, feedback: Sequence[FeedbackRow]) -> Dataset:
        """The dataset of this feedback, under the ledger and the queue as they are."""
        values = {"quarantine": False, "max_rows_per_person": None, **self.settings}
        return build(
            Sources(
                seed=self.files,
                reference=self.reference,
                feedback=feedback,
                cut={},
                queue=QueueRows(judges=self.audited, waiting=frozenset(self.waiting)),
            ),
            labels=LABELS,
            settings=Settings(model=ModelSettings(name="m"), dataset=DatasetSettings.model_validate(values)),
            embed=no_embedding,
            ledger=self.ledger,
        )

    def grow(self) -> None:
        fresh, self.pending = self.pending, []
        known = (
            [row.text for row in self.given] + [row.text for row in self.files] + [row.text for row in self.reference]
        )
        while len(fresh) < self.rows:
            chance = self.draw.random()
            if chance < self.duplicates:
                fresh.append(edited(self.draw, self.draw.choice(known + fresh)))
            elif chance < self.duplicates + self.bridges:
                middle = sentence(self.draw, self.draw.choice(LABELS))
                fresh += [edited(self.draw, middle, 5), edited(self.draw, middle, len(middle) - 5)]
                self.pending.append(middle)  # near both, and seen only once they have their sides
            else:
                fresh.append(sentence(self.draw, self.draw.choice(LABELS)))
        first = len(self.given)
        kinds = ["correction"] * 8 + ["up", "down"]
        for n, text in enumerate(fresh, first):
            kind = self.draw.choice(kinds)
            value = self.draw.choice(LABELS) if kind == "correction" else kind
            self.given.append(said(text, value, n, kind="correction" if kind == "correction" else "rating"))

    def _look(self, found: Dataset, present: set[str]) -> None:
        sides = sides_in_use(found)
        self.changed += sum(self.side.setdefault(text, side) != side for text, side in sides.items())
        texts = list(sides)
        pairs = similar_pairs(texts)
        self.pairs += len(texts)
        self.leaks += sum(sides[texts[i]] != sides[texts[j]] for i, j in pairs)
        self.dropped.update(found.manifest.dropped)
        judging = {text for text, side in sides.items() if side in ("calibration", "test")}
        for row in self.audited:
            if row.text in judging and row.text not in self.judged_audits:
                self.judged_audits.add(row.text)
                self.late += any(similarity(row.text, text) >= THRESHOLD for text in self.ever_trained & present)
        self.ever_trained |= {text for text, side in sides.items() if side in ("train", "validation")}


def sides_in_use(found: Dataset) -> dict[str, str]:
    """text -> side of every row in use; a rejection trains."""
    parts: dict[str, Sequence[Example | FileRow]] = {
        "train": [*found.train, *found.rejections],
        "validation": found.validation,
        "calibration": found.calibration,
        "test": found.reference,
    }
    sides: dict[str, str] = {}
    for side, rows in parts.items():
        for row in rows:
            assert row.text not in sides, f"on two sides at once: {row.text}"
            sides[row.text] = side
    return sides


def grams_of(text: str) -> frozenset[str]:
    """Character 3-grams of the case-folded text with white space collapsed."""
    normal = " ".join(text.casefold().split())
    return frozenset(normal[i : i + 3] for i in range(max(1, len(normal) - 2)))


def similarity(one: str, other: str) -> float:
    """The Jaccard similarity of two texts."""
    a, b = grams_of(one), grams_of(other)
    return len(a & b) / len(a | b)


def similar_pairs(texts: Sequence[str], threshold: float = 0.9) -> list[tuple[int, int]]:
    """Every pair with Jaccard similarity >= threshold, by prefix filtering (Chaudhuri et al. 2006): not our own way."""
    sets = [grams_of(text) for text in texts]
    frequency = Counter(gram for found in sets for gram in found)
    index: dict[str, list[int]] = defaultdict(list)
    pairs = []
    for i, own in enumerate(sets):
        prefix = sorted(own, key=lambda gram: (frequency[gram], gram))[: len(own) - ceil(threshold * len(own)) + 1]
        for j in {j for gram in prefix for j in index[gram]}:
            shared = len(own & sets[j])
            if shared >= threshold * (len(own) + len(sets[j]) - shared):
                pairs.append((j, i))
        for gram in prefix:
            index[gram].append(i)
    return pairs
