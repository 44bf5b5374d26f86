"""A damaged outbox: recognised, set aside, and its readable events recovered.

Turns an outbox that SQLite refuses into a renamed file beside it and the events that can still be read, which
outbox_disk.py puts into a fresh outbox.
"""

import contextlib
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.messaging.outbox_store import EVENT, Row, make_table

log = logging.getLogger("ratchet.outbox")

PAGE_SIZE_AT = slice(16, 18)
CHANGES_AT, VALID_FOR_AT = 24, 92  # where they differ, SQLite takes the number of pages from the file's size


def is_damage(error: Exception) -> bool:
    """Return whether an SQLite error means that the file is damaged; other errors, like a full disk, may pass."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def check(disk: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError if SQLite's quick check finds a fault."""
    fault = disk.execute("PRAGMA quick_check(1)").fetchone()[0]
    if fault != "ok":
        error = sqlite3.DatabaseError(str(fault).splitlines()[-1])
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def set_aside(path: Path, reason: Exception) -> list[Row]:
    """Rename a damaged outbox, log its new name, and return the events that could be read.

    Raises:
        OSError: the file cannot be renamed.

    """
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%f')}")
    for ending in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{ending}", f"{aside}{ending}")
    rows = _rows(aside)
    log.error(
        "outbox %s cannot be read (%s): set aside as %s; %d events recovered", path.name, reason, aside, len(rows)
    )
    return rows


def _rows(path: Path) -> list[Row]:
    """Return the readable events of a copy, as it is or with a fresh first page, which holds the schema."""
    for parent in (path.parent, None):  # the outbox's disk may be full
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=parent, prefix=".salvage-") as folder:
            copy = Path(folder) / "outbox.db"
            for repaired in (False, True):
                _copy(path, copy, repaired=repaired)
                with contextlib.suppress(sqlite3.Error):
                    if rows := _readable(copy):
                        return rows
            return []
    return []


def _copy(path: Path, copy: Path, *, repaired: bool) -> None:
    content = bytearray(path.read_bytes())
    wal = Path(f"{copy}-wal")
    if repaired:
        wal.unlink(missing_ok=True)
        first = _first_page(copy.with_name("fresh.db"))
        content[: len(first)] = first
    elif (original := Path(f"{path}-wal")).exists():
        wal.write_bytes(original.read_bytes())
    copy.write_bytes(content)


def _first_page(path: Path) -> bytes:
    """Return the first page of an empty outbox: tables are created in one order, so page numbers are the same everywhere."""
    with contextlib.closing(sqlite3.connect(path)) as fresh:
        make_table(fresh)
    content = bytearray(path.read_bytes())
    content[CHANGES_AT : CHANGES_AT + 4] = b"\0\0\0\2"
    content[VALID_FOR_AT : VALID_FOR_AT + 4] = b"\0\0\0\1"
    return bytes(content[: int.from_bytes(content[PAGE_SIZE_AT])])


def _readable(path: Path) -> list[Row]:
    """Return the events before the first damaged page and after the last, by reading forwards and backwards."""
    rows: dict[int, Row] = {}
    query = f"SELECT sequence, {EVENT} FROM events NOT INDEXED ORDER BY sequence "  # noqa: S608
    with contextlib.closing(sqlite3.connect(path)) as disk:
        for order in ("ASC", "DESC"):
            for sequence, *row in _until_error(disk, query + order):
                if sequence in rows and order == "DESC":
                    break
                if isinstance(row[0], str) and isinstance(row[1], bytes) and isinstance(row[2], bytes):
                    rows[sequence] = (row[0], row[1], row[2], row[3], row[4])
    return [rows[sequence] for sequence in sorted(rows)]


def _until_error(disk: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error):
        yield from disk.execute(query)
