"""A project's dataset: its files read and built, and the rows written down beside a round.

Turns settings and feedback into a `Dataset`, and that into rows.jsonl and back. Rounds and `ratchet dataset` call it. It
deliberately decides nothing: build.py does.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from pipelines.dataset.build import Dataset, Ledger, build
from pipelines.dataset.clean import Tokens
from pipelines.dataset.examples import Example
from pipelines.dataset.files import read_rows
from pipelines.features import FeedbackRow
from schemas.settings import Settings
from serving.atomic_write import sync

if TYPE_CHECKING:
    from pipelines.training.bases import Base

ROWS = "rows.jsonl"


def collect_and_build(
    settings: Settings,
    feedback: Sequence[FeedbackRow],
    *,
    cut: dict[str, int],
    labels: Sequence[str],
    ledger: Ledger,
    base: "Base",
    since: datetime | None = None,
) -> Dataset:
    """The dataset of the project's files and this feedback; see `build`. Raises BadFile."""
    task, reference = settings.model.task, settings.dataset.reference
    return build(
        read_rows(settings.path(settings.dataset.seed), task),
        read_rows(settings.path(reference), task) if reference else None,
        feedback,
        labels=labels,
        cut=cut,
        settings=settings,
        embed=base.embed,
        ledger=ledger,
        domain=[row for path in settings.dataset.domain for row in read_rows(settings.path(path), task)],
        tokens=Tokens(base.token_counts, base.token_limit),
        since=since,
    )


def write_rows(folder: Path, dataset: Dataset) -> None:
    """Write every row that trains, validates or is audited to rows.jsonl, with its side."""
    sides = {
        "train": dataset.train,
        "validation": dataset.validation,
        "rejection": dataset.rejections,
        "audit": dataset.audit,
    }
    beside = folder / f"{ROWS}.tmp"
    with beside.open("wb") as file:
        for side, rows in sides.items():
            for row in rows:
                file.write(orjson.dumps(row)[:-1] + b',"side":"%s"}\n' % side.encode())
    sync(beside)
    beside.rename(folder / ROWS)
    sync(folder)


def training_rows(folder: Path) -> list[Example]:
    """The rows, training and validation, that a round was given."""
    found = []
    with (folder / ROWS).open("rb") as file:
        for line in file:
            row = orjson.loads(line)
            if row.pop("side") in ("train", "validation"):
                found.append(Example(**row))
    return found
