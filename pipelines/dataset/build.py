"""Build the dataset of a round from files and feedback, with a reason for every row that is left out.

Order: collect, clean, cap per person, quarantine, cluster near-duplicates, hold out the reference and the audit texts,
merge by vote, assign sides, replay and balance. `build` reads no files; its only side effect is that it records sides in the
split ledger.

Every row in use, on any side, leads its cluster. No two of them are near-duplicates, so the split leaks nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset import balance, split
from pipelines.dataset.cleaning.clean import clean
from pipelines.dataset.cleaning.names import installed_tier
from pipelines.dataset.cleaning.quarantine import quarantined_people
from pipelines.dataset.examples import Drops, Example
from pipelines.dataset.files import FileRow
from pipelines.dataset.groups import JUDGING, TRAINED, Groups, far_from_trained, untrained
from pipelines.dataset.manifest import Sides, manifest_of
from pipelines.dataset.sources.collect import from_feedback, from_files
from pipelines.dataset.sources.queue_labels import QueueRows
from pipelines.feature_store.store import FeedbackRow
from schemas.manifests import DatasetManifest
from schemas.records import Trusted
from schemas.settings import Settings
from schemas.targets import LABELLED, labels_of
from serving.inference.normalise import normalise

USES = {"validation": "validate", "calibration": "judge", "test": "judge"}  # sides without rejections
NOBODY = Trusted()
Embed = Callable[[Sequence[str]], NDArray[np.float32]]  # n texts -> [n, width]
Redact = Callable[[list[str]], list[str]]  # texts -> texts without names of people and places


class Ledger(Protocol):
    """The split ledger: the side of every cluster that a round has assigned so far."""

    def sides(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the side of each key that has one."""

    def record_sides(self, sides: Mapping[str, str]) -> dict[str, str]:
        """Store the sides of keys that have none yet; return the stored side of every key."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The rows that a dataset is built from."""

    seed: Sequence[FileRow]  # train in every round
    domain: Sequence[FileRow] = ()  # further labelled rows
    reference: Sequence[FileRow] | None = None  # curated, never train; None: only held-out rows form the reference set
    queue: QueueRows = field(default_factory=QueueRows)  # what people labelled in the queue
    feedback: Sequence[FeedbackRow]  # effective feedback up to `cut`
    cut: dict[str, int]  # last offset of feedback by topic-partition, for the manifest
    since: datetime | None = None  # feedback up to this time is subject to replay; None: all feedback is new
    trusted: Trusted = NOBODY  # people whom a reviewer released from quarantine, or rejected


@dataclass(frozen=True, kw_only=True)
class Dataset(Sides):
    """The rows on which a round trains, calibrates and evaluates; no row is a near-duplicate of another."""

    labels: list[str]
    manifest: DatasetManifest


def build(
    sources: Sources,
    *,
    labels: Sequence[str],
    settings: Settings,
    embed: Embed,
    ledger: Ledger,
) -> Dataset:
    """Return the dataset of one round. The order of the source rows makes no difference.

    Args:
        sources: the rows.
        labels: the active taxonomy, in order.
        settings: the project's.
        embed: n texts -> [n, width].
        ledger: sides assigned before; this round's new sides are written to it.

    """
    drops, reference_drops = Drops(), Drops()
    redact = installed_tier() if settings.dataset.names else None
    examples = clean_and_cap(sources, labels, settings, redact, drops)
    people = quarantined_people(examples, embed, settings, sources.trusted)
    examples = drops.keep(examples, lambda e: e.person not in people, "quarantined person")
    groups = group_near_duplicates(sources, examples, redact, ledger, settings, reference_drops)
    reference, reference_sides = hold_out_reference(groups, labels, settings, reference_drops)
    on = assign_sides(groups, reference_sides, ledger, settings, drops)
    kept = {
        side: drops.keep(on[side], lambda e: not e.rejects, f"rejection: does not {use}") for side, use in USES.items()
    }
    sides = Sides(
        train=replay_and_balance([e for e in on["train"] if not e.rejects], sources.since, settings, drops),
        validation=kept["validation"],
        rejections=[e for e in on["train"] if e.rejects],
        **by_use(
            _file_rows(reference["calibration"] + kept["calibration"]),
            _file_rows(reference["test"] + kept["test"]),
            settings,
        ),
    )
    manifest = manifest_of(
        sides,
        labels,
        settings.model.task,
        rows_in=len(sources.seed) + len(sources.domain) + len(sources.feedback) + len(sources.queue.trains),
        cut=sources.cut,
        curated=len(reference_sides),
        quarantined_people=sorted(people),
        drops=drops,
        reference_drops=reference_drops,
    )
    return Dataset(**vars(sides), labels=list(labels), manifest=manifest)


def clean_and_cap(
    sources: Sources,
    labels: Sequence[str],
    settings: Settings,
    redact: Redact | None,
    drops: Drops,
) -> list[Example]:
    """Return the usable rows of seed, domain and feedback: cleaned, and the newest `max_rows_per_person` of each person."""
    wanted, task = settings.dataset, settings.model.task
    files = [*from_files(sources.seed, "seed"), *from_files(sources.domain, "domain")]
    files += from_files(sources.queue.trains, "settled")
    examples = clean(
        [*files, *from_feedback(sources.feedback, drops, task)],
        set(labels),
        drops,
        task=task,
        min_chars=wanted.min_chars,
        language=wanted.language,
        names=redact,
    )
    cap = wanted.max_rows_per_person
    if cap is None:
        return examples
    seen: Counter[str] = Counter()
    kept: set[int] = set()
    for e in sorted(examples, key=lambda e: (e.order, e.text, e.label, e.source), reverse=True):
        if e.person is None or seen[e.person] < cap:
            kept.add(id(e))
            seen[e.person or ""] += 1
    return drops.keep(examples, lambda e: id(e) in kept, "over the cap per person")


def group_near_duplicates(
    sources: Sources,
    examples: Sequence[Example],
    redact: Redact | None,
    ledger: Ledger,
    settings: Settings,
    drops: Drops,
) -> Groups:
    """Return the clusters of reference, audit texts and other rows; `drops` counts judging rows near a trained one."""

    def stored(texts: Iterable[str]) -> list[str]:
        tidied = [normalise(text) for text in texts]
        return redact(tidied) if redact else tidied

    def normalised(rows: Sequence[FileRow]) -> list[Example]:
        given = from_files(rows, "seed")
        return [replace(e, text=text) for e, text in zip(given, stored(e.text for e in given), strict=True)]

    key_of, task = partial(split.cluster_key, settings.model.name), settings.model.task
    audited = untrained(normalised(sources.queue.judges), examples, key_of, ledger.sides, task, drops)
    reference = far_from_trained(normalised(sources.reference or ()), examples, key_of, ledger.sides, task, drops)
    curated = [*reference, *audited]
    waiting = stored(sorted(sources.queue.waiting))
    return Groups(curated, waiting, examples, key_of, ledger.sides, task)


def hold_out_reference(
    groups: Groups, labels: Sequence[str], settings: Settings, drops: Drops
) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """Return the curated rows by side, and the side of each key.

    Rows that have trained in an earlier round are dropped, and rows with a label outside the taxonomy: no model can answer
    them correctly.
    """
    policy, known, task = _policy(settings), set(labels), settings.model.task
    held_out: dict[str, list[Example]] = {side: [] for side in JUDGING}
    sides: dict[str, str] = {}
    rows = groups.reference(drops)
    if task in LABELLED:
        rows = drops.keep(rows, lambda e: known.issuperset(labels_of(task, e.label)), "label is not in the taxonomy")
    for e in rows:
        key = groups.key[e.text]
        side = groups.known.get(key) or split.held_out_side(key, policy)
        if side in JUDGING:
            held_out[side].append(e)
            sides[key] = side
        else:
            drops.add(TRAINED, e.text)
    return held_out, sides


def assign_sides(
    groups: Groups,
    reference_sides: Mapping[str, str],
    ledger: Ledger,
    settings: Settings,
    drops: Drops,
) -> Mapping[str, list[Example]]:
    """Merge each cluster to one row, record all sides in the ledger, and return side -> rows in order of their text."""
    merged = groups.merge(drops)
    keys = [groups.key[e.text] for e in merged]
    decided = split.decide(
        merged,
        keys,
        groups.known,
        _policy(settings),
        task=settings.model.task,
        reference_rows=len(reference_sides),
    )
    in_force = ledger.record_sides({**reference_sides, **dict(zip(keys, decided, strict=True))})
    groups.drop_between(in_force, drops)
    on = defaultdict[str, list[Example]](list)
    for e, key in sorted(zip(merged, keys, strict=True), key=lambda pair: pair[0].text):
        on[in_force[key]].append(e)
    return on


def by_use(calibration: list[FileRow], test: list[FileRow], settings: Settings) -> dict[str, list[FileRow]]:
    """Return the rows that only calibrate and those that judge; without `dataset.calibration_share` all rows judge."""
    if settings.dataset.calibration_share is None:
        return {"calibration": [], "reference": calibration + test}
    return {"calibration": calibration, "reference": test}


def replay_and_balance(train: list[Example], since: datetime | None, settings: Settings, drops: Drops) -> list[Example]:
    """Return the training rows with older ones sampled (`dataset.replay`) and labels balanced (`dataset.balance`)."""
    wanted = settings.dataset
    always = balance.ALWAYS_REPLAYED if settings.training.start == "base" else 0
    train = balance.replay(train, since, wanted.replay, drops, always=always)
    if wanted.balance == "cap":
        return balance.capped(train, drops)
    return balance.class_weights(train) if wanted.balance == "weights" else train


def _policy(settings: Settings) -> split.Policy:
    wanted = settings.dataset
    return split.Policy(wanted.validation_share, wanted.calibration_share or 0.0, wanted.split_by)


def _file_rows(rows: Iterable[Example]) -> list[FileRow]:
    return [FileRow(e.text, e.label, e.metadata) for e in rows]
