"""One worker's outbox file, as its two threads use it: opened when needed, reopened after an error, replaced after damage.

Turns a folder into SQLite connections. outbox.py holds one `OutboxDisk`, and a `Connection` for each thread. On a full disk
each call fails until there is room. A damaged file is set aside, and its readable events go into a fresh one.
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

AT_ONCE = 500  # events of an orphan that are taken over in one commit
OLDEST = f"SELECT sequence, {EVENT} FROM events ORDER BY sequence LIMIT {AT_ONCE}"  # noqa: S608


class OutboxDisk:
    """The file that this process holds. Hold `guard` while writing events, so that the file is not set aside meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.guard = threading.RLock()
        self.era = 0  # the number of files set aside so far
        self._folder = folder
        self._path: Path | None = None
        self._lock: IO[bytes] | None = None
        self._checked = False
        self._salvaged: list[Row] = []

    def open(self, synchronous: str) -> sqlite3.Connection:
        """Return a connection to the file; see `open_disk`. Raises sqlite3.Error or OSError, which may pass."""
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
        """Set the damaged file aside; its readable events go into the next one when it is opened. Raises OSError."""
        with self.guard:
            assert self._path is not None
            self._salvaged += set_aside(self._path, reason)
            self.era += 1

    def adopt(self, mine: "Connection") -> int:
        """Move the events of outboxes that no living process holds into `mine`; return how many.

        Raises:
            sqlite3.Error, OSError: a file cannot be read, or `mine` cannot be written.

        """
        total = 0
        for path in sorted(self._folder.glob("outbox-*.db")):
            lock = None if path == self._path else try_lock(lock_file(path))
            if lock is not None:
                with lock:
                    total += self._take(path, mine)
        return total

    def close(self) -> None:
        """Release the file for other processes."""
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
        """Log an error if a file that was in use is empty or gone: SQLite would take it for a new one."""
        if lock.seek(0, os.SEEK_END) and not (path.exists() and path.stat().st_size):
            log.error("outbox %s was in use and is missing or empty: the events that it held are lost", path)

    def _note_use(self) -> None:
        with contextlib.suppress(OSError):
            if self._lock is not None and not self._lock.seek(0, os.SEEK_END):
                self._lock.write(b"in use\n")
                self._lock.flush()

    def _take(self, path: Path, mine: "Connection") -> int:
        """Write to `mine` first, fsynced: a crash in between leaves two copies of an event, never none.

        A few events at a time: an outbox may hold a gigabyte, and feedback goes on arriving meanwhile.
        """
        total = 0
        try:
            with contextlib.closing(open_disk(path, "FULL")) as orphan:
                make_table(orphan)
                while rows := orphan.execute(OLDEST).fetchall():
                    with self.guard:
                        mine.take_over([row[1:] for row in rows])
                    orphan.execute("DELETE FROM events WHERE sequence <= ?", (rows[-1][0],))
                    orphan.commit()
                    total += len(rows)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            with self.guard:
                rows = set_aside(path, error)
                mine.take_over(rows)
            total += len(rows)
        if total:
            log.info("took over %d events of %s", total, path.name)
        return total


class Connection:
    """One thread's connection to the outbox. `synchronous`: see `open_disk`."""

    def __init__(self, outbox: OutboxDisk, synchronous: str) -> None:
        self._outbox = outbox
        self._synchronous = synchronous
        self._disk: sqlite3.Connection | None = None
        self._era = -1

    def get(self) -> sqlite3.Connection:
        """Return the connection, opened if needed. Raises sqlite3.Error or OSError."""
        with self._outbox.guard:
            if self._disk is None or self._era != self._outbox.era:
                self.close()
                self._disk = self._outbox.open(self._synchronous)
                self._era = self._outbox.era
            return self._disk

    def write(self, messages: Sequence[Outgoing]) -> None:
        """Insert messages in one commit, into a fresh file if this one is damaged. Raises sqlite3.Error, OSError."""
        with self._outbox.guard:
            try:
                write(self.get(), messages)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.failed(error)
                write(self.get(), messages)

    def take_over(self, rows: Sequence[Row]) -> None:
        """Insert another outbox's events, on disk when this returns. Raises sqlite3.Error, OSError."""
        disk = self.get()
        take_over(disk, rows)
        disk.execute(f"PRAGMA synchronous={self._synchronous}")

    def failed(self, error: Exception) -> None:
        """Close the connection after an error, so that `get` opens it again; set a damaged file aside."""
        with self._outbox.guard:
            stale = self._era != self._outbox.era
            self.close()
            if is_damage(error) and not stale:
                self._outbox.replace(error)

    def close(self) -> None:
        """Close the connection; what was not committed is lost."""
        if self._disk is not None:
            with contextlib.suppress(sqlite3.Error):
                self._disk.close()
            self._disk = None
