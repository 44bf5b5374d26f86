"""Typed tables: Parquet and Excel workbooks become records, class labels by their names.

reading.py and dataset_folders.py call it. The names of a class label come from what Hugging Face datasets writes into the schema;
-1 and null become None: no label.
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

# column -> what a stored value stands for
Reading = Callable[[Any], object]
_HUB = b"huggingface"  # key of the schema's metadata


def read_parquet(path: Path, features: Mapping[str, Any]) -> Table:
    """Return the rows of a Parquet file; its own features go before the given ones. Raises BadFile."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise BadFile("no rows")
    refuse_magic(head, but=b"PAR1")
    try:
        # partitioning=None: a folder such as lang=en/ above the file is no column
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
    found = Table(names)
    for number, values in enumerate(table.to_pylist(), start=1):
        try:
            cells = {name: readings[name](values[name]) if name in readings else values[name] for name in names}
        except BadFile as error:
            found.problems.append(f"row {number}: {error}")
        else:
            found.records.append(Record(f"row {number}", cells))
    return found


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    try:
        features = json.loads(metadata[_HUB])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return dict(features) if isinstance(features, dict) else {}


def _reading(feature: object) -> Reading | None:
    """Return how values of a feature are read: a class label by name, a list of them by names; None: as they are."""
    if isinstance(feature, list) and len(feature) == 1:  # a list, as earlier versions of datasets write it
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
    if isinstance(value, str):  # a name already
        return value
    if isinstance(value, float) and value.is_integer():  # as pandas stores whole numbers beside missing ones
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise BadFile(f"class label {value!r} has no name: the schema names 0 to {len(names) - 1}")


def name_labels(table: Table, features: Mapping[str, Any]) -> Table:
    """Return the table with numbers of described class labels as their names. Raises BadFile."""
    for column in table.columns:
        if reading := _reading(features.get(column)):
            for record in table.records:
                value = record.values.get(column)
                number = isinstance(value, str) and value.strip().lstrip("-").isdecimal()
                record.values[column] = reading(int(str(value)) if number else value)
    return table


def read_workbook(path: Path, task: Task, named: Columns) -> Table:
    """Return the rows of the one sheet of an .xlsx workbook that has the wanted columns. Raises BadFile."""
    try:
        import openpyxl
    except ImportError as error:
        raise BadFile("reading .xlsx needs openpyxl: install it, or save the sheet as CSV UTF-8") from error
    with path.open("rb") as file:
        refuse_magic(file.read(32), but=b"PK\x03\x04")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of extensions that hold no cells
        try:
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            sheets = {
                sheet.title: [list(row) for row in sheet.iter_rows(values_only=True)] for sheet in book.worksheets
            }
            book.close()
        except Exception as error:  # openpyxl raises what its ZIP and XML parsers raise
            raise BadFile(f"not a whole .xlsx workbook: {type(error).__name__}: {brief(str(error))}") from error
    found: dict[str, Table] = {}
    failures = []
    for title, rows in sheets.items():
        if any(map(_filled, rows)):
            try:
                found[title] = _sheet(rows, task, named)
            except BadFile as error:
                failures.append(f"sheet {title!r}: {error}")
    if len(found) > 1:
        raise BadFile(f"sheets {' and '.join(map(repr, found))} both have the columns: keep one of them in the file")
    if not found:
        raise BadFile("; ".join(failures) or "no rows")
    table = next(iter(found.values()))
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
            # an empty cell is an empty text here, as in CSV: nobody wrote "no label" into it
            cells = ["" if cell is None else cell for cell in [*row, *[None] * len(names)][: len(names)]]
            values = {name: cell for name, cell in zip(names, cells, strict=True) if not nameless(name)}
            table.records.append(Record(f"row {number}", values))
    if unnamed := [str(n) for n, name in enumerate(names, start=1) if nameless(name)]:
        table.notes.append(f"column {', '.join(unnamed)} has no name and is left out")
    return table


def _filled(row: Sequence[object]) -> bool:
    return any(cell is not None and str(cell).strip() for cell in row)
