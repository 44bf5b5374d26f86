"""The rows that judge, outside a round: those of the project's files whose side in the split ledger is a judging one.

Turns the files of seed and reference into rows that have never trained. The console compares versions on them.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from pipelines.dataset.files import FileRow, read_rows
from pipelines.dataset.project_dataset import columns_of
from pipelines.dataset.split import cluster_key
from schemas.labels import LabelMap
from schemas.settings import Settings
from schemas.targets import labels_of
from serving.inference.normalise import normalise


class Sides(Protocol):
    """The part of the split ledger that is read."""

    def sides(self, keys: Iterable[str]) -> Mapping[str, str]:
        """Return the side of each key that has one."""


def judging_rows(settings: Settings, labels: LabelMap, ledger: Sides) -> list[FileRow]:
    """Return the rows that judge, each text once, with current labels, all active. Raises BadFile.

    Those are the rows of the side `test`, and without `dataset.calibration_share` those of `calibration` too.
    """
    task = settings.model.task
    paths = [path for path in (settings.dataset.reference, settings.dataset.seed) if path]
    by_key: dict[str, FileRow] = {}
    for path in paths:
        for row in read_rows(settings.path(path), task, columns_of(settings)):
            label = labels.target(task, row.label)
            if all(labels.is_active(name) for name in labels_of(task, label)):
                text = normalise(row.text)
                by_key.setdefault(cluster_key(settings.model.name, text), FileRow(text, label, row.metadata))
    sides, judging = ledger.sides(by_key), {"test"}
    if settings.dataset.calibration_share is None:
        judging.add("calibration")
    return [row for key, row in by_key.items() if sides.get(key) in judging]
