"""Labelled files: CSV, JSONL, Parquet or a Hugging Face dataset folder in, rows out.

`ratchet init` checks seed and reference with it, rounds read them. Texts pass the fast anonymiser, as served texts do. It
deliberately does not clean or judge.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.targets import COLUMNS, BadTarget, Task, from_cell
from serving.anonymise import anonymise


class BadFile(ValueError):
    """A file that holds no usable rows; the message names file, row and column."""


@dataclass(frozen=True)
class FileRow:
    """One labelled text, anonymised; other columns as metadata. `label` is the target's canonical text, whatever the task."""

    text: str
    label: str
    metadata: dict[str, str] = field(default_factory=dict)


def read_rows(path: Path, task: Task) -> list[FileRow]:
    """Every row of a file with columns `text` and the one of the task's target (schemas/targets.py). Raises BadFile."""
    target = COLUMNS[task]
    try:
        records = _records(path, target)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: {error}") from error
    if not records:
        raise BadFile(f"{path}: no rows")
    for column in ("text", target):
        if column not in records[0]:
            raise BadFile(f"{path}: no column {column!r}; it has {', '.join(map(str, records[0]))}")
    rows = []
    for number, record in enumerate(records, start=2 if path.suffix == ".csv" else 1):
        given = {key: value for key, value in record.items() if key is not None}
        values = {key: "" if value is None else str(value).strip() for key, value in given.items()}
        for column in ("text", target):
            if not values.get(column):
                hint = "; [] says that a row has no labels" if column == "labels" else ""
                raise BadFile(f"{path}: row {number}: {column} is empty{hint}")
        try:
            label = from_cell(task, given[target] if isinstance(given[target], list) else values[target])
        except BadTarget as error:
            raise BadFile(f"{path}: row {number}: {target} is {error}") from error
        metadata = {k: anonymise(v) for k, v in values.items() if k not in ("text", target) and v}
        rows.append(FileRow(anonymise(values["text"]), label, metadata))
    return rows


def _records(path: Path, target: str) -> list[dict[str, Any]]:
    if path.is_dir():
        return _folder(path, target)
    match path.suffix.lower():
        case ".csv":
            import csv

            csv.field_size_limit(2**31 - 1)
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        case ".jsonl" | ".ndjson":
            found = []
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise BadFile(f"row {number} is not an object")
                    found.append(record)
            return found
        case ".parquet":
            import pyarrow.parquet as pq

            table: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            return table
        case other:
            raise BadFile(f"expected .csv, .jsonl or .parquet, not {other!r}")


def _folder(path: Path, target: str) -> list[dict[str, Any]]:
    """Every row of a folder that `save_to_disk` of Hugging Face datasets wrote; labels by name, all splits."""
    from datasets import ClassLabel, DatasetDict, load_from_disk

    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise BadFile(f"{path}: a folder, but not of a Hugging Face dataset (no dataset_info.json)")
    loaded = load_from_disk(str(path))
    found: list[dict[str, Any]] = []
    for part in loaded.values() if isinstance(loaded, DatasetDict) else [loaded]:
        rows: list[dict[str, Any]] = part.to_list()
        kind = part.features.get(target)
        named = getattr(kind, "feature", kind)  # of a list of labels, its members'
        if isinstance(named, ClassLabel):
            rows = [{**row, target: named.int2str(row[target])} for row in rows]
        found += rows
    return found
