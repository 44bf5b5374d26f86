"""Choose the reader for a path by its suffix, and read its splits as tables.

A folder is a saved dataset, or a dataset repository cloned from the hub. dataset/files.py calls it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.files.dataset_folders import data_files, described_features, is_saved, read_saved
from pipelines.files.decoding import decode, refuse_magic
from pipelines.files.delimited import read_delimited
from pipelines.files.json_lines import read_json
from pipelines.files.records import BadFile, Columns, Table
from pipelines.files.tables import name_labels, read_parquet, read_workbook
from schemas.targets import Task

EXPECTED = "expected .csv, .tsv, .jsonl, .json, .parquet, .xlsx or a dataset folder"


def read_tables(path: Path, task: Task, columns: Columns) -> dict[str, Table]:
    """Return name -> table of the splits in a folder; for a file, one table with an empty name.

    Raises:
        BadFile: the content cannot be read as records.
        OSError: the path cannot be opened.

    """
    if not path.is_dir():
        return {"": _table(path, task, columns, {})}
    if is_saved(path):
        return read_saved(path)
    features = described_features(path)
    tables = {}
    for file in data_files(path):
        name = str(file.relative_to(path))
        try:
            tables[name] = _table(file, task, columns, features)
        except BadFile as error:
            raise BadFile(f"{name}: {error}") from error
    return tables


def _table(path: Path, task: Task, columns: Columns, features: Mapping[str, Any]) -> Table:
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return name_labels(read_delimited(decode(path.read_bytes()), task, columns), features)
        case ".jsonl" | ".ndjson" | ".json":
            return name_labels(read_json(decode(path.read_bytes())), features)
        case ".parquet":
            return read_parquet(path, features)
        case ".xlsx":
            return read_workbook(path, task, columns)
        case other:
            with path.open("rb") as file:
                refuse_magic(file.read(32))
            raise BadFile(f"{EXPECTED}, not {other!r}")
