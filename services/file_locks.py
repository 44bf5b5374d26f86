"""A file whose lock stands for a living process: it goes with the process, however that ends.

Turns a path into a lock with a note of who holds it. The supervisor holds one for each folder, a round's process one for
each round. It deliberately knows nothing of other machines.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

WAIT_S = 1.0  # somebody who only looks holds the lock for an instant


class Held(RuntimeError):
    """Another process holds the lock; `note` is what it wrote."""

    def __init__(self, note: str) -> None:
        super().__init__(note)
        self.note = note


@contextlib.contextmanager
def held(path: Path, note: str, *, wait_s: float = WAIT_S) -> Iterator[str]:
    """Hold the file's lock, with `note` as its text, and yield the note before: of a process that is dead. Raises Held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise Held(file.read().strip()) from None
                time.sleep(0.05)
        file.seek(0)
        before = file.read().strip()
        file.truncate(0)
        file.write(note)
        file.flush()
        yield before
