"""Locks on files: one process of this machine at a time, released by the operating system however that process ends.

Turns a path into a lock, with a note of its holder if wanted. The supervisor holds one for each project folder, a round's
process one for each round, a serving worker one for its outbox. Other machines do not see these locks.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

WAIT_S = 1.0  # a process that only reads the note holds the lock for an instant


class LockHeld(RuntimeError):
    """Another process holds the lock; `note` is what it wrote."""

    def __init__(self, note: str) -> None:
        super().__init__(note)
        self.note = note


@contextlib.contextmanager
def held(path: Path, note: str, *, wait_s: float = WAIT_S) -> Iterator[str]:
    """Hold a file's lock, replace its text by `note`, and yield the note of the last holder, which is dead.

    Raises:
        LockHeld: another process has held the lock for `wait_s` seconds.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a+", encoding="utf-8") as file:
        while not _take(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.seek(0)
                raise LockHeld(file.read().strip())
            time.sleep(0.05)
        file.seek(0)
        before = file.read().strip()
        file.truncate(0)
        file.write(note)
        file.flush()
        yield before


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a file's lock as long as it takes, and hold it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> IO[bytes] | None:
    """Return the locked file, whose lock lasts until it is closed or this process ends; None if another process holds it."""
    file = path.open("ab")
    if _take(file, fcntl.LOCK_EX):
        return file
    file.close()
    return None


def holder(path: Path) -> tuple[bool, str]:
    """Return whether a process holds a file's lock now, and the note of the last holder. Raises OSError."""
    with path.open(encoding="utf-8", errors="replace") as file:
        free = _take(file, fcntl.LOCK_SH)
        return not free, file.read()


def _take(file: IO[str] | IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
