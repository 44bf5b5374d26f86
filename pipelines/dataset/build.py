"""The dataset of a round: seed, reference and feedback in, training and judging rows out, every row accounted for.

training_round.py calls `build`. A pure function but for two values passed in: `embed` (texts to vectors) and `record_sides`
(the split ledger). It deliberately trains nothing.

Order: collect, clean, evict what the reference holds, cap per person, quarantine, merge duplicates by vote, split.
"""

import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.deduplicate import leaders
from pipelines.dataset.files import FileRow
from pipelines.dataset.quarantine import quarantined
from pipelines.features import FeedbackRow
from schemas.artifacts import DatasetManifest
from schemas.settings import Settings

RATING_WEIGHT = 0.5
LEAST_REFERENCE = 2


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled text that may train."""

    text: str
    label: str
    source: str
    person: str | None = None
    weight: float = 1.0
    order: str = ""


@dataclass(frozen=True)
class Dataset:
    """What a round trains on, calibrates on and is judged by; these never overlap."""

    train: list[Example]
    validation: list[Example]
    calibration: list[FileRow]
    judge: list[FileRow]
    labels: list[str]
    manifest: DatasetManifest


class Drops:
    """Rows left out, by reason, with one example each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, text: str) -> None:
        """Count one row."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, text[:120])


def build(
    seed: Sequence[FileRow],
    reference: Sequence[FileRow] | None,
    feedback: Sequence[FeedbackRow],
    *,
    labels: Sequence[str],
    cut: dict[str, int],
    settings: Settings,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    record_sides: Callable[[Mapping[str, str]], dict[str, str]],
) -> Dataset:
    """Build the dataset of one round.

    Args:
        seed: labelled rows that train in every round.
        reference: curated rows that never train; None sets a keyed share of the seed aside.
        feedback: effective feedback up to the cut.
        labels: the active taxonomy, in order.
        cut: what `feedback` was read up to, for the manifest.
        settings: the project's.
        embed: texts -> [n, width].
        record_sides: cluster -> wanted side; returns the sides in force.

    """
    key = settings.model.name
    if reference is None:
        seed, reference = _set_aside(seed, key)
    drops = Drops()
    rows_in = len(seed) + len(feedback)
    examples = _clean([*_from_seed(seed), *_from_feedback(feedback, drops)], set(labels), drops)
    examples = _evict(examples, [row.text for row in reference], drops)
    examples = _cap(examples, settings.dataset.max_rows_per_person, drops)
    people: set[str] = set()
    if settings.dataset.quarantine and any(e.person for e in examples):
        vectors = embed([e.text for e in examples])
        people = quarantined(
            vectors,
            [e.label for e in examples],
            [e.person for e in examples],
            [e.source == "correction" for e in examples],
            probe_c=settings.training.probe_c,
        )
        examples = _keep(examples, lambda e: e.person not in people, "quarantined person", drops)
    examples = _merge(examples, drops)
    train, validation = _split(examples, key, settings.dataset.validation_share, record_sides)
    calibration = [r for r in reference if _share(key, "calibration", r.text) < settings.dataset.calibration_share]
    judge = [r for r in reference if _share(key, "calibration", r.text) >= settings.dataset.calibration_share]
    used = [*train, *validation]
    manifest = DatasetManifest(
        fingerprint=_fingerprint((e.text, e.label, e.source, e.weight) for e in used),
        cut=cut,
        labels=list(labels),
        rows_in=rows_in,
        rows_train=len(train),
        rows_validation=len(validation),
        rows_by_source=dict(Counter(e.source for e in used)),
        rows_by_label=dict(Counter(e.label for e in used)),
        dropped=dict(drops.counts),
        dropped_examples=drops.examples,
        quarantined_people=sorted(people),
        reference_rows=len(judge),
        reference_calibration_rows=len(calibration),
        reference_sha256=_fingerprint((r.text, r.label) for r in reference),
    )
    return Dataset(train, validation, calibration, judge, list(labels), manifest)


def normalise(text: str) -> str:
    """NFC, without control characters, white space collapsed."""
    plain = "".join(c if unicodedata.category(c) != "Cc" else " " for c in unicodedata.normalize("NFC", text))
    return " ".join(plain.split())


def _from_seed(seed: Sequence[FileRow]) -> list[Example]:
    return [Example(text=row.text, label=row.label, source="seed") for row in seed]


def _from_feedback(feedback: Sequence[FeedbackRow], drops: Drops) -> list[Example]:
    found = []
    for row in feedback:
        base = Example(
            text=row.text, label=row.predicted_label, source="rating", person=row.user, order=row.time.isoformat()
        )
        if row.kind == "correction" and isinstance(row.value, str):
            source = "confirmation" if row.value == row.predicted_label else "correction"
            found.append(_with(base, label=row.value, source=source))
        elif row.kind == "rating" and row.value == "up":
            found.append(_with(base, weight=RATING_WEIGHT))
        else:
            reason = "rating down: says what it is not" if row.kind == "rating" else f"{row.kind}: no label"
            drops.add(reason, row.text)
    return found


def _with(example: Example, **fields: object) -> Example:
    return Example(**{**example.__dict__, **fields})


def _keep(examples: list[Example], keep: Callable[[Example], bool], reason: str, drops: Drops) -> list[Example]:
    kept = []
    for example in examples:
        if keep(example):
            kept.append(example)
        else:
            drops.add(reason, example.text)
    return kept


def _clean(examples: list[Example], labels: set[str], drops: Drops) -> list[Example]:
    cleaned = [_with(e, text=normalise(e.text)) for e in examples]
    cleaned = _keep(cleaned, lambda e: bool(e.text), "empty", drops)
    return _keep(cleaned, lambda e: e.label in labels, "label not in the taxonomy", drops)


def _evict(examples: list[Example], reference: Sequence[str], drops: Drops) -> list[Example]:
    texts = [normalise(text) for text in reference] + [e.text for e in examples]
    found = leaders(texts)
    near = {e.text for n, e in enumerate(examples) if found[len(reference) + n] < len(reference)}
    return _keep(examples, lambda e: e.text not in near, "in the reference", drops)


def _cap(examples: list[Example], cap: int | None, drops: Drops) -> list[Example]:
    if cap is None:
        return examples
    seen: Counter[str] = Counter()
    kept: set[int] = set()
    for n in sorted(range(len(examples)), key=lambda i: (examples[i].order, examples[i].text), reverse=True):
        person = examples[n].person
        if person is None or seen[person] < cap:
            kept.add(n)
            seen[person or ""] += 1
        else:
            drops.add("over the cap per person", examples[n].text)
    return [e for n, e in enumerate(examples) if n in kept]


def _merge(examples: list[Example], drops: Drops) -> list[Example]:
    """One row for each cluster of near-duplicates: the label with most weight; a tie is nobody's."""
    ordered = sorted(examples, key=lambda e: (e.source != "seed", e.text, e.label, e.order))
    clusters: dict[int, list[Example]] = defaultdict(list)
    for leader, example in zip(leaders([e.text for e in ordered]), ordered, strict=True):
        clusters[leader].append(example)
    merged = []
    for members in clusters.values():
        votes: Counter[str] = Counter()
        for e in members:
            votes[e.label] += e.weight * (1000 if e.source == "seed" else 1)  # type: ignore[assignment]  # weights are floats
        (label, most), *others = votes.most_common()
        agreed = not others or others[0][1] < most
        chosen = next((e for e in members if e.label == label), None) if agreed else None
        for e in members:
            if e is not chosen:
                drops.add("disagreement" if chosen is None else "duplicate" if e.label == label else "outvoted", e.text)
        if chosen is not None:
            merged.append(chosen)
    return merged


def _split(
    examples: list[Example], key: str, share: float, record_sides: Callable[[Mapping[str, str]], dict[str, str]]
) -> tuple[list[Example], list[Example]]:
    """Sides by keyed hash, written once to the ledger; a label with two rows or fewer in training gets all of its rows."""
    cluster = {e.text: hashlib.sha256(f"{key}\0{e.text}".encode()).hexdigest() for e in examples}
    wanted = {cluster[e.text]: "validation" if _share(key, "validation", e.text) < share else "train" for e in examples}
    in_train = Counter(e.label for e in examples if wanted[cluster[e.text]] == "train")
    for e in examples:
        if wanted[cluster[e.text]] == "validation" and in_train[e.label] < 2:
            wanted[cluster[e.text]] = "train"
            in_train[e.label] += 1
    sides = record_sides(wanted)
    train = [e for e in examples if sides[cluster[e.text]] == "train"]
    return train, [e for e in examples if sides[cluster[e.text]] == "validation"]


def _set_aside(seed: Sequence[FileRow], key: str) -> tuple[list[FileRow], list[FileRow]]:
    """Without a reference file: about 30 % of the seed judges, as long as every label keeps two training rows."""
    left = Counter(row.label for row in seed)
    train, reference = [], []
    for row in seed:
        if _share(key, "reference", row.text) < 0.3 and left[row.label] > LEAST_REFERENCE:
            left[row.label] -= 1
            reference.append(row)
        else:
            train.append(row)
    return train, reference


def _share(key: str, purpose: str, text: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{key}\0{purpose}\0{text}".encode()).digest()[:8]) / 2**64


def _fingerprint(rows: Iterable[object]) -> str:
    return hashlib.sha256(json.dumps(sorted(json.dumps(r) for r in rows)).encode()).hexdigest()
