"""Read Parquet files and Excel workbooks as records, with class labels by name.

The names of class labels come from the schema that Hugging Face datasets writes; -1 and null become None (no label).
reading.py and dataset_folders.py call it.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.files.columns import check_header, find_columns, nameless
from pipelines.files.decoding import refuse_magic
from pipelines.files.records import BadFile, Columns, Record, Table, brief
from schemas.targets import Task

if TYPE_CHECKING:
    import pyarrow as pa

# stored value -> its meaning
Reading = Callable[[Any], object]
_HUB = b"huggingface"  # key of the schema's metadata


def read_parquet(path: Path, features: Mapping[str, Any]) -> Table:
    """Return the rows of a Parquet file; the features in its schema override the given ones. Raises BadFile."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise BadFile("no rows")
    refuse_magic(head, but=b"PAR1")
    try:
        # partitioning=None: no column from a parent folder such as lang=en/
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise BadFile(f"not a whole Parquet file: {brief(str(error))}") from error
    return arrow_rows(table, features)


def arrow_rows(table: "pa.Table", features: Mapping[str, Any]) -> Table:
    """Return the rows of an Arrow table; class labels become their names. Raises BadFile."""
    check_header(table.column_names, "schema")
    features = {**features, **_features(table.schema.metadata or {})}
    readings = {name: reading for name in table.column_names if (reading := _reading(features.get(name)))}
    names = [name for name in table.column_names if not nameless(name)]
    records = Table(names)
    for number, values in enumerate(table.to_pylist(), start=1):
        try:
            cells = {name: readings[name](values[name]) if name in readings else values[name] for name in names}
        except BadFile as error:
            records.problems.append(f"row {number}: {error}")
        else:
            records.records.append(Record(f"row {number}", cells))
    return records


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    try:
        features = json.loads(metadata[_HUB])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return dict(features) if isinstance(features, dict) else {}


def _reading(feature: object) -> Reading | None:
    """Return the conversion of a class label, or a list of them, to names; None for other features."""
    if isinstance(feature, list) and len(feature) == 1:  # a list, in the form of earlier versions of datasets
        feature = {"_type": "List", "feature": feature[0]}
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(names := feature.get("names"), Sequence):
        return lambda value: _name(names, value)
    if feature.get("_type") in ("List", "LargeList", "Sequence") and (member := _reading(feature.get("feature"))):
        return lambda value: None if value is None else [member(each) for each in value]
    return None


def _name(names: Sequence[str], value: object) -> object:
    if value is None or value == -1:
        return None
    if isinstance(value, str):  # already a name
        return value
    if isinstance(value, float) and value.is_integer():  # pandas stores integers as floats if some are missing
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise BadFile(f"class label {value!r} has no name: the schema names 0 to {len(names) - 1}")


def name_labels(table: Table, features: Mapping[str, Any]) -> Table:
    """Return the table with class labels as names where `features` describes them. Raises BadFile."""
    for column in table.columns:
        if reading := _reading(features.get(column)):
            for record in table.records:
                value = record.values.get(column)
                number = isinstance(value, str) and value.strip().lstrip("-").isdecimal()
                record.values[column] = reading(int(str(value)) if number else value)
    return table


def read_workbook(path: Path, task: Task, named: Columns) -> Table:
    """Return the rows of the only sheet of an .xlsx workbook with text and target. Raises BadFile."""
    try:
        import openpyxl
    except ImportError as error:
        raise BadFile("reading .xlsx needs openpyxl: install it, or save the sheet as CSV UTF-8") from error
    with path.open("rb") as file:
        refuse_magic(file.read(32), but=b"PK\x03\x04")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about extensions without cells
        try:
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            sheets = {
                sheet.title: [list(row) for row in sheet.iter_rows(values_only=True)] for sheet in book.worksheets
            }
            book.close()
        except Exception as error:  # openpyxl passes on the many types of its ZIP and XML parsers
            raise BadFile(f"not a whole .xlsx workbook: {type(error).__name__}: {brief(str(error))}") from error
    tables: dict[str, Table] = {}
    failures = []
    for title, rows in sheets.items():
        if any(map(_filled, rows)):
            try:
                tables[title] = _sheet(rows, task, named)
            except BadFile as error:
                failures.append(f"sheet {title!r}: {error}")
    if len(tables) > 1:
        raise BadFile(f"sheets {' and '.join(map(repr, tables))} all have the columns: keep one of them in the file")
    if not tables:
        raise BadFile("; ".join(failures) or "no rows")
    table = next(iter(tables.values()))
    table.notes += [f"{failure}: left out" for failure in failures]
    return table


def _sheet(rows: Sequence[Sequence[object]], task: Task, named: Columns) -> Table:
    start = next(n for n, row in enumerate(rows) if _filled(row))
    names = ["" if cell is None else str(cell).strip() for cell in rows[start]]
    while not names[-1]:
        names.pop()
    check_header(names, f"row {start + 1}")
    find_columns(names, task, named)
    table = Table([name for name in names if not nameless(name)])
    for number, row in enumerate(rows[start + 1 :], start=start + 2):
        if any(cell is not None and str(cell).strip() for cell in row[len(names) :]):
            table.problems.append(f"row {number}: a cell to the right of the header's {len(names)}")
        elif _filled(row):
            # an empty cell is an empty text, as in CSV, and no explicit "no label"
            cells = ["" if cell is None else cell for cell in [*row, *[None] * len(names)][: len(names)]]
            values = {name: cell for name, cell in zip(names, cells, strict=True) if not nameless(name)}
            table.records.append(Record(f"row {number}", values))
    if unnamed := [str(n) for n, name in enumerate(names, start=1) if nameless(name)]:
        table.notes.append(f"column {', '.join(unnamed)} has no name and is left out")
    return table


def _filled(row: Sequence[object]) -> bool:
    return any(cell is not None and str(cell).strip() for cell in row)
