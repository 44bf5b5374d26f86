"""Read a project's files, build its dataset with build.py, and write the rows beside a round as rows.jsonl.

Rounds and `ratchet dataset` call it.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from pipelines.dataset.build import NOBODY, Dataset, Ledger, Sources, build
from pipelines.dataset.examples import Example
from pipelines.dataset.exclusions import kept
from pipelines.dataset.files import Columns, FileRow, read_rows
from pipelines.dataset.sources.queue_labels import QueueRows
from pipelines.feature_store.store import FeedbackRow
from schemas.labels import LabelMap
from schemas.records import Trusted
from schemas.settings import Settings
from schemas.targets import LABELLED, Task, canonical, labels_of, value_of
from serving.atomic_write import replacing

if TYPE_CHECKING:
    from pipelines.models.base_models import Base

ROWS = "rows.jsonl"


def collect_and_build(
    settings: Settings,
    feedback: Sequence[FeedbackRow],
    *,
    cut: dict[str, int],
    labels: LabelMap,
    ledger: Ledger,
    base: "Base",
    since: datetime | None = None,
    without: frozenset[str] = frozenset(),
    queue: QueueRows | None = None,
    trusted: Trusted = NOBODY,
) -> Dataset:
    """Return the dataset of the project's files and this feedback; see `build`. Raises BadFile.

    `labels` is the taxonomy: renamed labels of files and feedback get their current names. `without` has the keys of excluded
    texts (exclusions.py), `queue` what people labelled there, `trusted` a reviewer's decisions about people.
    """
    task, reference, columns = settings.model.task, settings.dataset.reference, columns_of(settings)

    def read(path: str) -> list[FileRow]:
        rows = kept(read_rows(settings.path(path), task, columns), without)
        return [replace(row, label=labels.target(task, row.label)) for row in rows]

    given = queue or QueueRows()
    labelled = QueueRows(
        judges=_judging(kept(given.judges, without), labels, task),
        trains=kept(given.trains, without),
        waiting=given.waiting,
    )
    sources = Sources(
        seed=read(settings.dataset.seed),
        domain=[row for path in settings.dataset.domain for row in read(path)],
        reference=_judging(read(reference), labels, task) if reference else None,
        queue=labelled,
        feedback=[_renamed(row, labels, task) for row in feedback],
        cut=cut,
        since=since,
        trusted=trusted,
    )
    return build(
        sources,
        labels=labels.active,
        settings=settings,
        embed=base.embed,
        ledger=ledger,
    )


def columns_of(settings: Settings) -> Columns:
    """Return the columns that the settings name for all files of rows."""
    return Columns(settings.dataset.text_column, settings.dataset.label_column)


def _judging(rows: list[FileRow], labels: LabelMap, task: Task) -> list[FileRow]:
    """Return the rows with active labels only: no model may predict the others."""
    return [row for row in rows if all(labels.is_active(name) for name in labels_of(task, row.label))]


def _renamed(row: FeedbackRow, labels: LabelMap, task: Task) -> FeedbackRow:
    """Return the feedback with the current names of its labels and of its prediction's."""
    if task not in LABELLED:
        return row
    try:
        value = labels.target(task, canonical(task, row.value)) if row.kind == "correction" else None
        predicted = labels.target(task, row.predicted_label)
    except ValueError:
        return row  # no target of this task: collect.py drops and counts it
    renamed = row.value if value is None else value_of(task, value)
    return replace(row, value=renamed, predicted_label=predicted)


def write_rows(folder: Path, dataset: Dataset) -> None:
    """Write every row that trains or validates to rows.jsonl, with its side."""
    sides = {
        "train": dataset.train,
        "validation": dataset.validation,
        "rejection": dataset.rejections,
    }
    with replacing(folder / ROWS) as temporary, temporary.open("wb") as file:
        for side, rows in sides.items():
            for row in rows:
                file.write(orjson.dumps(row)[:-1] + b',"side":"%s"}\n' % side.encode())


def training_rows(folder: Path) -> list[Example]:
    """Return the training and validation rows that `write_rows` wrote for a round."""
    rows = []
    with (folder / ROWS).open("rb") as file:
        for line in file:
            row = orjson.loads(line)
            if row.pop("side") in ("train", "validation"):
                row.pop("audit", None)  # of a round by an earlier release
                rows.append(Example(**row))
    return rows
