"""A damaged outbox: told from a full disk, set aside, and read out as far as it goes.

Turns an outbox that SQLite refuses into a file beside it and the events that can still be read. outbox.py calls it. It
deliberately knows no broker: what it reads is published like anything else.
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
CHANGES_AT, VALID_FOR_AT = 24, 92  # where they differ, SQLite counts the pages by the file's size


def is_damage(error: Exception) -> bool:
    """Return whether an error of SQLite means that the file itself is damaged: waiting mends a full disk, but not that."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def check(disk: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError if a file's pages do not hang together."""
    found = disk.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        error = sqlite3.DatabaseError(str(found).splitlines()[-1])
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def set_aside(path: Path, reason: Exception) -> list[Row]:
    """Move a damaged outbox aside, with a line that says where, and return the events that it still gives.

    Raises:
        OSError: the disk refuses to rename.

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
    """What can be read of a copy of the file, as it is or with its first page, which holds the schema, made anew."""
    for place in (path.parent, None):  # the disk may be full
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=place, prefix=".salvage-") as folder:
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
    elif (found := Path(f"{path}-wal")).exists():
        wal.write_bytes(found.read_bytes())
    copy.write_bytes(content)


def _first_page(path: Path) -> bytes:
    """The first page of an empty outbox: tables are made in one order, so their pages have one number everywhere."""
    with contextlib.closing(sqlite3.connect(path)) as fresh:
        make_table(fresh)
    content = bytearray(path.read_bytes())
    content[CHANGES_AT : CHANGES_AT + 4] = b"\0\0\0\2"
    content[VALID_FOR_AT : VALID_FOR_AT + 4] = b"\0\0\0\1"
    return bytes(content[: int.from_bytes(content[PAGE_SIZE_AT])])


def _readable(path: Path) -> list[Row]:
    """Rows from the first on until a damaged page, and from the last on back."""
    found: dict[int, Row] = {}
    query = f"SELECT sequence, {EVENT} FROM events NOT INDEXED ORDER BY sequence "  # noqa: S608
    with contextlib.closing(sqlite3.connect(path)) as disk:
        for order in ("ASC", "DESC"):
            for sequence, *row in _until_error(disk, query + order):
                if sequence in found and order == "DESC":
                    break
                if isinstance(row[0], str) and isinstance(row[1], bytes) and isinstance(row[2], bytes):
                    found[sequence] = (row[0], row[1], row[2], row[3], row[4])
    return [found[sequence] for sequence in sorted(found)]


def _until_error(disk: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error):
        yield from disk.execute(query)
