"""Turns a CSV, JSONL or Parquet file of labelled rows into `FileRow`s.

The command line calls it when a project is made, the round when it builds its dataset. It deliberately does not know
which rows train and which judge, and cleans nothing: a text arrives as the file holds it.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MAX_FIELD_CHARS = 10_000_000


@dataclass(frozen=True)
class FileRow:
    """One labelled row: `metadata` is every other column that has a value, as text."""

    text: str
    label: str
    metadata: dict[str, str] = field(default_factory=dict)


class FileError(ValueError):
    """A file of rows can't be read; the message names file, row and column."""


def read_rows(path: Path, *, task: Literal["classification"] = "classification") -> list[FileRow]:
    """Rows of a file, in the file's order.

    Args:
        path: ends in .csv, .jsonl or .parquet; CSV and JSONL are UTF-8. Rows count from 1, without the CSV's header.
        task: decides which column is the target; classification reads `label`.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: another ending, not readable as that, a column or a value is missing, or no rows at all.

    """
    if task != "classification":
        raise FileError(f"{path}: no columns are known for task {task!r}")
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileError(f"{path}: ends in {path.suffix or 'nothing'!r}, not in {', '.join(readers)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        rows = [_row(path, number, values) for number, values in enumerate(reader(path), start=1)]
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not UTF-8 at byte {error.start}") from error
    if not rows:
        raise FileError(f"{path}: no rows")
    return rows


def _csv_rows(path: Path) -> Iterator[Mapping[str, object]]:
    """Rows of a CSV with a header; a quoted field may hold line breaks."""
    csv.field_size_limit(MAX_FIELD_CHARS)  # the default of 131,072 characters is below one long document
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = [column.strip() for column in reader.fieldnames or []]
        _check_columns(path, columns)
        reader.fieldnames = columns
        try:
            for number, values in enumerate(reader, start=1):
                if None in values:
                    raise FileError(f"{path}: row {number} has more fields than the header's {len(columns)}")
                yield values
        except csv.Error as error:
            raise FileError(f"{path}: line {reader.line_num}: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[Mapping[str, object]]:
    """Rows of a file with one JSON object a line; empty lines are passed over."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise FileError(f"{path}: line {number} is not JSON: {error}") from error
            if not isinstance(values, dict):
                raise FileError(f"{path}: line {number} is not a JSON object")
            yield values


def _parquet_rows(path: Path) -> Iterable[Mapping[str, object]]:
    """Rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowInvalid as error:
        raise FileError(f"{path}: not Parquet: {error}") from error
    _check_columns(path, table.column_names)
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def _check_columns(path: Path, columns: list[str]) -> None:
    """Raise FileError unless the columns `text` and `label` are there, once each."""
    for wanted in ("text", "label"):
        if columns.count(wanted) != 1:
            problem = "more than one column" if wanted in columns else "no column"
            raise FileError(f"{path}: {problem} {wanted!r}; its columns are {', '.join(columns) or 'none'}")


def _row(path: Path, number: int, values: Mapping[str, object]) -> FileRow:
    """One row checked. An empty text is let through: cleaning drops and counts it."""
    text, label = values.get("text"), values.get("label")
    if not isinstance(text, str):
        raise FileError(f"{path}: row {number}, column 'text': {'missing' if text is None else repr(text)[:80]}")
    # Class numbers are fine as names; a float is most often a label column spoilt by an empty cell.
    if not isinstance(label, str | int) or not str(label).strip():
        problem = "missing" if label is None or label == "" else f"not a label: {label!r}"[:80]
        raise FileError(f"{path}: row {number}, column 'label': {problem}")
    metadata = {
        str(column): str(value)
        for column, value in values.items()
        if column not in ("text", "label") and value is not None and value != ""
    }
    return FileRow(text, str(label).strip(), metadata)
