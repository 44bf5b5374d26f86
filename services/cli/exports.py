"""Tables that leave the project: JSON Lines, CSV or Parquet, by the file's name or as asked for.

Turns rows of plain values into one file, written beside its place and then renamed. `ratchet feedback export` and
`ratchet dataset export` call it. It deliberately knows no feedback.

A spreadsheet runs a cell that begins with one of FORMULA as a formula, whoever typed it. Such a cell of a CSV gets an apostrophe
in front, which spreadsheets read as "this is text" (OWASP, "CSV Injection"). Plain numbers stay as they are.
"""

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import orjson

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
Rows = Iterable[Mapping[str, Any]]


def kind_of(out: Path, asked: str | None, default: str | None = None) -> str:
    """Return a key of WRITERS: what was asked for, else what the file's name says. Raises UsageError."""
    suffix = out.suffix.lower().removeprefix(".")
    kind = asked or (suffix if suffix in WRITERS else default)
    if kind is None:
        names = ", ".join(f".{name}" for name in WRITERS)
        raise click.UsageError(f"--out {out}: expected a name that ends in one of {names}, or --format")
    return kind


def write(out: Path, kind: str, columns: Sequence[str], rows: Rows) -> int:
    """Write the rows to `out` and return how many; nothing half-written stays there."""
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        done = WRITERS[kind](beside, columns, rows)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return done


def cell(value: object) -> str:
    """Return what a CSV's cell holds: text that no spreadsheet runs; lists and objects as JSON."""
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
    """Times are times; everything else is text, lists and objects as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.timestamp("us", tz="UTC") if name == "time" else pa.string()) for name in columns])
    found = [
        {name: row[name] if name == "time" or row[name] is None else _text(row[name]) for name in columns}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(found, schema=schema), path)
    return len(found)


def _moment(value: object) -> object:
    return value.isoformat() if hasattr(value, "isoformat") else value


WRITERS: Mapping[str, Callable[[Path, Sequence[str], Rows], int]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
