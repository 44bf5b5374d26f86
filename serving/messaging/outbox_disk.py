"""One worker's outbox file as its two threads use it: opened when needed, again after a failure, anew after damage.

Turns a folder into SQLite connections. outbox.py holds one `OutboxDisk`, and a `Connection` for each thread. A full disk
is met again and again until there is room; a damaged file is set aside, and what it still gives goes into a fresh one. It
deliberately knows no broker.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from serving.file_lock import try_lock
from serving.messaging.outbox_salvage import check, is_damage, set_aside
from serving.messaging.outbox_store import EVENT, Row, claim, lock_file, make_table, open_disk, take_over, write
from serving.messaging.publisher import Outgoing

log = logging.getLogger("ratchet.outbox")


class OutboxDisk:
    """The file that this process holds. `guard` keeps writes that must not be lost apart from setting the file aside."""

    def __init__(self, folder: Path) -> None:
        self.guard = threading.RLock()
        self.era = 0  # how many files were set aside
        self._folder = folder
        self._path: Path | None = None
        self._lock: IO[bytes] | None = None
        self._checked = False
        self._salvaged: list[Row] = []

    def open(self, synchronous: str) -> sqlite3.Connection:
        """Connect to the file; see `open_disk`. Raises sqlite3.Error or OSError: try again later."""
        with self.guard:
            if self._path is None:
                self._path, self._lock = claim(self._folder)
                self._notice_loss(self._path, self._lock)
            try:
                return self._opened(self._path, synchronous)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.replace(error)
            return self._opened(self._path, synchronous)

    def replace(self, reason: Exception) -> None:
        """Set the damaged file aside; what it gives is written into the next one as that is opened. Raises OSError."""
        with self.guard:
            assert self._path is not None
            self._salvaged += set_aside(self._path, reason)
            self.era += 1

    def adopt(self, mine: "Connection") -> int:
        """Take over the events of outboxes that no living process holds; return how many. Raises sqlite3.Error, OSError."""
        total = 0
        for path in sorted(self._folder.glob("outbox-*.db")):
            lock = None if path == self._path else try_lock(lock_file(path))
            if lock is not None:
                with lock, self.guard:
                    total += self._take(path, mine)
        return total

    def close(self) -> None:
        """Let another process have the file."""
        if self._lock is not None:
            self._lock.close()

    def _opened(self, path: Path, synchronous: str) -> sqlite3.Connection:
        disk = open_disk(path, synchronous)
        try:
            make_table(disk)
            if not self._checked:
                check(disk)
            self._checked = True
            self._note_use()
            if self._salvaged:
                take_over(disk, self._salvaged)
                disk.execute(f"PRAGMA synchronous={synchronous}")
                self._salvaged = []
        except BaseException:
            disk.close()
            raise
        return disk

    def _notice_loss(self, path: Path, lock: IO[bytes]) -> None:
        """Say so if a file that was in use is empty or gone: SQLite would take it for a new one."""
        if lock.seek(0, os.SEEK_END) and not (path.exists() and path.stat().st_size):
            log.error("outbox %s was in use and cannot be found, or is empty: the events that it held are lost", path)

    def _note_use(self) -> None:
        with contextlib.suppress(OSError):
            if self._lock is not None and not self._lock.seek(0, os.SEEK_END):
                self._lock.write(b"in use\n")
                self._lock.flush()

    def _take(self, path: Path, mine: "Connection") -> int:
        """Ours first, fsynced: a death in between leaves two copies of an id, never none."""
        try:
            with contextlib.closing(open_disk(path, "FULL")) as orphan:
                make_table(orphan)
                rows = orphan.execute(f"SELECT {EVENT} FROM events ORDER BY sequence").fetchall()  # noqa: S608
                if rows:
                    mine.take_over(rows)
                    orphan.execute("DELETE FROM events")
                    orphan.commit()
                    log.info("took over %d events of %s", len(rows), path.name)
                return len(rows)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            rows = set_aside(path, error)
            mine.take_over(rows)
            return len(rows)


class Connection:
    """One thread's connection. `synchronous`: see `open_disk`."""

    def __init__(self, home: OutboxDisk, synchronous: str) -> None:
        self._home = home
        self._synchronous = synchronous
        self._disk: sqlite3.Connection | None = None
        self._era = -1

    def get(self) -> sqlite3.Connection:
        """The connection, opened if need be. Raises sqlite3.Error or OSError."""
        with self._home.guard:
            if self._disk is None or self._era != self._home.era:
                self.close()
                self._disk = self._home.open(self._synchronous)
                self._era = self._home.era
            return self._disk

    def write(self, messages: Sequence[Outgoing]) -> None:
        """Add messages in one commit; once more into a fresh file if this one is damaged. Raises sqlite3.Error, OSError."""
        with self._home.guard:
            try:
                write(self.get(), messages)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.failed(error)
                write(self.get(), messages)

    def take_over(self, rows: Sequence[Row]) -> None:
        """Add another outbox's events, on disk when this returns. Raises sqlite3.Error, OSError."""
        disk = self.get()
        take_over(disk, rows)
        disk.execute(f"PRAGMA synchronous={self._synchronous}")

    def failed(self, error: Exception) -> None:
        """Note that something went wrong with it: it is opened again, and a damaged file is set aside."""
        with self._home.guard:
            stale = self._era != self._home.era
            self.close()
            if is_damage(error) and not stale:
                self._home.replace(error)

    def close(self) -> None:
        """Close the connection, and with it what was not committed."""
        if self._disk is not None:
            with contextlib.suppress(sqlite3.Error):
                self._disk.close()
            self._disk = None
