"""The dataset of a round: files and feedback in, training and judging rows out, every row accounted for.

training_round.py and `ratchet dataset` call `build`. A pure function but for what is passed in: `embed` (texts to vectors) and
the split ledger. It deliberately trains nothing.

Order: collect, clean, cap per person, quarantine, cluster near-duplicates, evict what judges, merge by vote, decide sides,
replay and balance. All rows in use, on whatever side, lead their clusters, so no two of them are near-duplicates: that is
how a split leaks nothing.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from pipelines.dataset import balance, split
from pipelines.dataset.clean import Tokens, clean, tidy
from pipelines.dataset.collect import from_feedback, from_files
from pipelines.dataset.counted import Counted
from pipelines.dataset.examples import Drops, Example
from pipelines.dataset.files import FileRow
from pipelines.dataset.groups import AUDIT, IN_AUDIT, JUDGING, Groups
from pipelines.dataset.names import installed_tier
from pipelines.dataset.quarantine import quarantined
from pipelines.feature_store.store import FeedbackRow
from schemas.manifests import DatasetManifest
from schemas.setting_groups import DatasetSettings
from schemas.settings import Settings


class Ledger(Protocol):
    """Where sides are kept: the registry."""

    def sides(self, keys: Iterable[str]) -> dict[str, str]:
        """The sides in force of those keys that have one."""

    def record_sides(self, sides: Mapping[str, str]) -> dict[str, str]:
        """Write sides where there are none yet; the sides in force."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a round trains on, calibrates on and is judged by; no row of one is near a row of another.

    `rejections` say what their texts are not. `audit` rows are a fair sample of traffic not seen before, and never train.
    """

    train: list[Example]
    validation: list[Example]
    rejections: list[Example] = field(default_factory=list)
    calibration: list[FileRow]
    judge: list[FileRow]
    audit: list[Example] = field(default_factory=list)
    labels: list[str]
    manifest: DatasetManifest


def build(
    seed: Sequence[FileRow],
    reference: Sequence[FileRow] | None,
    feedback: Sequence[FeedbackRow],
    *,
    labels: Sequence[str],
    cut: dict[str, int],
    settings: Settings,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    ledger: Ledger,
    domain: Sequence[FileRow] = (),
    tokens: Tokens | None = None,
    since: datetime | None = None,
) -> Dataset:
    """Build the dataset of one round. The same rows in another order make the same one.

    Args:
        seed: labelled rows that train in every round.
        reference: curated rows that never train; None: only rows of files that are held out judge.
        feedback: effective feedback up to the cut.
        labels: the active taxonomy, in order.
        cut: what `feedback` was read up to, for the manifest.
        settings: the project's.
        embed: texts -> [n, width].
        ledger: sides decided before; what is decided now is written to it.
        domain: further labelled rows.
        tokens: how the base model counts; None: no text is too long.
        since: up to when feedback is old, for replay; None: all is new.

    """
    wanted, name, task, drops = settings.dataset, settings.model.name, settings.model.task, Drops()
    names = installed_tier() if wanted.names else None
    given = [*from_files(seed, "seed"), *from_files(domain, "domain"), *from_feedback(feedback, drops, task)]
    examples = clean(
        given,
        set(labels),
        drops,
        task=task,
        min_chars=wanted.min_chars,
        language=wanted.language,
        tokens=tokens,
        names=names,
    )
    examples = _cap(examples, wanted.max_rows_per_person, drops)
    people = _quarantined(examples, embed, settings)
    examples = drops.keep(examples, lambda e: e.person not in people, "quarantined person")

    rows = from_files(reference or (), "seed")
    texts = [tidy(e.text) for e in rows]
    curated = [replace(e, text=text) for e, text in zip(rows, names(texts) if names else texts, strict=True)]
    groups = Groups(curated, examples, lambda text: split.cluster_key(name, text), ledger.sides, task)
    reference_drops = Drops()
    held_out, sides = _reference(groups, wanted, reference_drops)
    audit = groups.audit(drops)
    merged = groups.merge(drops)
    keys = [groups.key[e.text] for e in merged]
    policy = split.Policy(wanted.validation_share, wanted.calibration_share, wanted.split_by)
    decided = split.decide(merged, keys, groups.known, policy, task=task, reference_rows=len(sides))
    drawn = {groups.key[e.text]: AUDIT for e in audit}
    in_force = ledger.record_sides({**sides, **drawn, **dict(zip(keys, decided, strict=True))})
    groups.drop_between(in_force, drops)
    on = defaultdict[str, list[Example]](list)
    for e, key in sorted(zip(merged, keys, strict=True), key=lambda pair: pair[0].text):
        on[in_force[key]].append(e)

    rejections = [e for e in on["train"] if e.rejects]
    always = balance.ALWAYS_REPLAYED if settings.training.start == "base" else 0
    train = balance.replay([e for e in on["train"] if not e.rejects], since, wanted.replay, drops, always=always)
    if wanted.balance == "cap":
        train = balance.capped(train, drops)
    elif wanted.balance == "weights":
        train = balance.class_weights(train)
    validation = drops.keep(on["validation"], lambda e: not e.rejects, "rejection: does not validate")
    for side in JUDGING:
        held_out[side] += drops.keep(on[side], lambda e: not e.rejects, "rejection: does not judge")
    counted = Counted.over(task, labels, [e.label for e in train])
    manifest = DatasetManifest(
        fingerprint=_fingerprint(
            (side, e.text, e.label, e.source, round(e.weight, 9))
            for side, rows in (("train", train), ("validation", validation), ("rejection", rejections))
            for e in rows
        ),
        cut=cut,
        labels=list(labels),
        rows_in=len(seed) + len(domain) + len(feedback),
        rows_train=len(train),
        rows_validation=len(validation),
        rows_rejections=len(rejections),
        rows_held_out=sum(map(len, held_out.values())) - len(sides),
        rows_audit=len(audit),
        rows_by_source=dict(sorted(Counter(e.source for e in [*train, *validation]).items())),
        rows_by_label=counted.rows(e.label for e in [*train, *validation]),
        dropped=dict(sorted(drops.counts.items())),
        dropped_examples=dict(sorted(drops.examples.items())),
        quarantined_people=sorted(people),
        reference_rows=len(held_out["test"]),
        reference_calibration_rows=len(held_out["calibration"]),
        reference_dropped=dict(sorted(reference_drops.counts.items())),
        reference_sha256=_fingerprint((side, e.text, e.label) for side in JUDGING for e in held_out[side]),
    )
    return Dataset(
        train=train,
        validation=validation,
        rejections=rejections,
        calibration=[_file_row(e) for e in held_out["calibration"]],
        judge=[_file_row(e) for e in held_out["test"]],
        audit=audit,
        labels=list(labels),
        manifest=manifest,
    )


def _cap(examples: list[Example], cap: int | None, drops: Drops) -> list[Example]:
    """At most `cap` rows a person, the newest."""
    if cap is None:
        return examples
    seen: Counter[str] = Counter()
    kept: set[int] = set()
    for e in sorted(examples, key=lambda e: (e.order, e.text, e.label, e.source), reverse=True):
        if e.person is None or seen[e.person] < cap:
            kept.add(id(e))
            seen[e.person or ""] += 1
    return drops.keep(examples, lambda e: id(e) in kept, "over the cap per person")


def _quarantined(
    examples: Sequence[Example], embed: Callable[[Sequence[str]], NDArray[np.float32]], settings: Settings
) -> set[str]:
    if not settings.dataset.quarantine or not any(e.person for e in examples):
        return set()
    given = sorted((e for e in examples if not e.rejects), key=lambda e: (e.text, e.label, e.person or "", e.order))
    return quarantined(
        [e.text for e in given],
        [e.label for e in given],
        [e.person for e in given],
        [e.source == "correction" for e in given],
        task=settings.model.task,
        embed=embed,
        probe_c=settings.training.probe_c,
    )


def _reference(
    groups: Groups, wanted: DatasetSettings, drops: Drops
) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """The curated rows by side, and the sides of their keys. What trained once cannot judge."""
    policy = split.Policy(wanted.validation_share, wanted.calibration_share, wanted.split_by)
    held_out: dict[str, list[Example]] = {side: [] for side in JUDGING}
    sides: dict[str, str] = {}
    for e in groups.reference(drops):
        key = groups.key[e.text]
        side = groups.known.get(key) or split.held_out_side(key, policy)
        if side in JUDGING:
            held_out[side].append(e)
            sides[key] = side
        else:
            drops.add(IN_AUDIT if side == AUDIT else "has trained: it cannot judge", e.text)
    return held_out, sides


def _file_row(e: Example) -> FileRow:
    return FileRow(e.text, e.label, e.metadata)


def _fingerprint(rows: Iterable[object]) -> str:
    """One hash over the rows, whatever their order."""
    return hashlib.sha256(b"\n".join(sorted(orjson.dumps(row) for row in rows))).hexdigest()
