"""Labelled files: CSV, JSONL, Parquet or a Hugging Face dataset folder in, rows out.

`ratchet init` checks seed and reference with it, rounds read them. Texts pass the fast anonymiser, as served texts do. It
deliberately does not clean or judge.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.anonymise import anonymise


class BadFile(ValueError):
    """A file that holds no usable rows; the message names file, row and column."""


@dataclass(frozen=True)
class FileRow:
    """One labelled text, anonymised; other columns as metadata."""

    text: str
    label: str
    metadata: dict[str, str] = field(default_factory=dict)


def read_rows(path: Path) -> list[FileRow]:
    """Every row of a file with columns `text` and `label`. Raises BadFile."""
    try:
        records = _records(path)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: {error}") from error
    if not records:
        raise BadFile(f"{path}: no rows")
    for column in ("text", "label"):
        if column not in records[0]:
            raise BadFile(f"{path}: no column {column!r}; it has {', '.join(map(str, records[0]))}")
    rows = []
    for number, record in enumerate(records, start=2 if path.suffix == ".csv" else 1):
        values = {key: "" if value is None else str(value).strip() for key, value in record.items() if key is not None}
        for column in ("text", "label"):
            if not values.get(column):
                raise BadFile(f"{path}: row {number}: {column} is empty")
        metadata = {k: anonymise(v) for k, v in values.items() if k not in ("text", "label") and v}
        rows.append(FileRow(anonymise(values["text"]), values["label"], metadata))
    return rows


def _records(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        return _folder(path)
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


def _folder(path: Path) -> list[dict[str, Any]]:
    """Every row of a folder that `save_to_disk` of Hugging Face datasets wrote; labels by name, all splits."""
    from datasets import ClassLabel, DatasetDict, load_from_disk

    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise BadFile(f"{path}: a folder, but not of a Hugging Face dataset (no dataset_info.json)")
    loaded = load_from_disk(str(path))
    found: list[dict[str, Any]] = []
    for part in loaded.values() if isinstance(loaded, DatasetDict) else [loaded]:
        rows: list[dict[str, Any]] = part.to_list()
        kind = part.features.get("label")
        if isinstance(kind, ClassLabel):
            rows = [{**row, "label": kind.int2str(row["label"])} for row in rows]
        found += rows
    return found
