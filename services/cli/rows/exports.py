"""Exported tables: JSON Lines, CSV or Parquet.

Turns rows of plain values into one file, for `ratchet feedback export` and `ratchet dataset export`. The file is written under a
temporary name and then renamed.

Spreadsheets run a cell that begins with one of FORMULA as a formula. In a CSV such a cell gets a leading apostrophe, which marks
it as text (OWASP, "CSV Injection"). Plain numbers stay as they are.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from serving.atomic_write import replacing

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
Rows = Iterable[Mapping[str, Any]]


def kind_of(out: Path, requested: str | None, default: str | None = None) -> str:
    """Return a key of WRITERS: the requested one, else by the file's ending, else `default`. Raises UsageError."""
    suffix = out.suffix.lower().removeprefix(".")
    kind = requested or (suffix if suffix in WRITERS else default)
    if kind is None:
        names = ", ".join(f".{name}" for name in WRITERS)
        raise click.UsageError(f"--out {out}: expected a name that ends in one of {names}, or --format")
    return kind


def write(out: Path, kind: str, columns: Sequence[str], rows: Rows) -> int:
    """Write the rows to `out`, whole or not at all, and return their number."""
    with replacing(out) as beside:
        return WRITERS[kind](beside, columns, rows)


def cell(value: object) -> str:
    """Return a CSV cell that no spreadsheet runs as a formula; lists and objects as JSON."""
    text = _text(value)
    return f"'{text}" if text.startswith(FORMULA) and not _NUMBER.fullmatch(text) else text


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _write_jsonl(path: Path, columns: Sequence[str], rows: Rows) -> int:
    done = 0
    with path.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps({name: row[name] for name in columns}, option=orjson.OPT_APPEND_NEWLINE))
            done += 1
    return done


def _write_csv(path: Path, columns: Sequence[str], rows: Rows) -> int:
    done = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([cell(_moment(row[name])) for name in columns])
            done += 1
    return done


def _write_parquet(path: Path, columns: Sequence[str], rows: Rows) -> int:
    """Write `time` as a timestamp and everything else as text, lists and objects as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.timestamp("us", tz="UTC") if name == "time" else pa.string()) for name in columns])
    records = [
        {name: row[name] if name == "time" or row[name] is None else _text(row[name]) for name in columns}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path)
    return len(records)


def _moment(value: object) -> object:
    return value.isoformat() if hasattr(value, "isoformat") else value


WRITERS: Mapping[str, Callable[[Path, Sequence[str], Rows], int]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
