"""Write the account of a dataset: rows by side, source and label, what was dropped, and fingerprints.

build.py calls it last. The fingerprint covers what a model is fitted on, `reference_sha256` what it is judged by.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from pipelines.dataset.counted import Counted
from pipelines.dataset.examples import UNCHALLENGED, Drops, Example
from pipelines.dataset.files import FileRow
from schemas.manifests import DatasetManifest
from schemas.targets import Task


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The rows in use, by side.

    `rejections` name a label that their text does not have. `reference` is the reference set. `calibration` only fits the
    calibration; if it is empty, the reference rows do that too, by cross-fitting.
    """

    train: list[Example]
    validation: list[Example]
    rejections: list[Example] = field(default_factory=list)
    calibration: list[FileRow]
    reference: list[FileRow]

    @property
    def calibrating(self) -> list[FileRow]:
        """Return the rows that fit the calibration."""
        return self.calibration or self.reference


def manifest_of(
    sides: Sides,
    labels: Sequence[str],
    task: Task,
    *,
    rows_in: int,
    cut: dict[str, int],
    curated: int,
    quarantined_people: list[str],
    drops: Drops,
    reference_drops: Drops,
) -> DatasetManifest:
    """Return the counts and fingerprints of a dataset; `curated` of its held-out rows come from the reference file."""
    train, validation = sides.train, sides.validation
    counted = Counted.over(task, labels, [e.label for e in train])
    used = [
        (side, e.text, e.label, e.source, round(e.weight, 9))
        for side, rows in (("train", train), ("validation", validation), ("rejection", sides.rejections))
        for e in rows
    ]
    return DatasetManifest(
        fingerprint=_fingerprint(used),
        given_sha256=_fingerprint(row for row in used if row[3] != UNCHALLENGED),
        cut=cut,
        labels=list(labels),
        rows_in=rows_in,
        rows_train=len(train),
        rows_validation=len(validation),
        rows_rejections=len(sides.rejections),
        rows_held_out=len(sides.reference) + len(sides.calibration) - curated,
        rows_by_source=dict(sorted(Counter(e.source for e in [*train, *validation]).items())),
        rows_by_label=counted.rows(e.label for e in [*train, *validation]),
        dropped=dict(sorted(drops.counts.items())),
        dropped_examples=dict(sorted(drops.examples.items())),
        quarantined_people=quarantined_people,
        reference_rows=len(sides.reference),
        reference_calibration_rows=len(sides.calibration),
        reference_dropped=dict(sorted(reference_drops.counts.items())),
        reference_sha256=_fingerprint(
            (side, row.text, row.label)
            for side, rows in (("calibration", sides.calibration), ("test", sides.reference))
            for row in rows
        ),
    )


def _fingerprint(rows: Iterable[object]) -> str:
    """Return one SHA-256 over the rows, whatever their order."""
    return hashlib.sha256(b"\n".join(sorted(orjson.dumps(row) for row in rows))).hexdigest()
