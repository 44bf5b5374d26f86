"""The files of a folder of outboxes: which worker holds which, and what is in one.

Turns a folder into one SQLite file that this process alone may use, and events into its rows. outbox.py calls it, and
`ratchet status` asks what waits. It deliberately knows no broker.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from serving.file_lock import try_lock

if TYPE_CHECKING:  # `ratchet status` counts without loading a Kafka client
    from serving.messaging.publisher import Outgoing

EVENT = "topic, key, value, place, last"
Row = tuple[str, bytes, bytes, str | None, int | None]  # as EVENT names them


class OutboxesTaken(RuntimeError):
    """Every outbox of the folder is held by a living process."""


def claim(folder: Path) -> tuple[Path, IO[bytes]]:
    """The lowest-numbered outbox that no living process holds: a restarted worker goes on with its file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        path = folder / f"outbox-{number}.db"
        lock = try_lock(lock_file(path))
        if lock is not None:
            return path, lock
    raise OutboxesTaken(f"{folder}: every outbox is taken")


def lock_file(path: Path) -> Path:
    """Return the file whose lock goes with an outbox."""
    return path.with_suffix(".lock")


def open_disk(path: Path, synchronous: str) -> sqlite3.Connection:
    """A connection in WAL mode; `synchronous` "FULL" fsyncs each commit, "NORMAL" may lose the last ones with the power."""
    disk = sqlite3.connect(path, timeout=10)
    disk.execute("PRAGMA journal_mode=WAL")
    disk.execute(f"PRAGMA synchronous={synchronous}")
    return disk


def make_table(disk: sqlite3.Connection) -> None:
    """`place` ('<topic_id>/<partition>') and `last` (offset) say where an event was published; unset: not yet."""
    disk.executescript(
        "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY, topic TEXT NOT NULL, key BLOB NOT NULL,"
        " value BLOB NOT NULL, place TEXT, last INTEGER);"
        "CREATE INDEX IF NOT EXISTS waiting ON events (sequence) WHERE place IS NULL;"
        "CREATE INDEX IF NOT EXISTS placed ON events (place, last) WHERE place IS NOT NULL;"
    )


def write(disk: sqlite3.Connection, messages: "Sequence[Outgoing]") -> None:
    """Add messages in one commit."""
    if messages:
        rows = [(m.topic, m.key, m.value) for m in messages]
        disk.executemany("INSERT INTO events (topic, key, value) VALUES (?, ?, ?)", rows)
        disk.commit()


def take_over(disk: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Add another outbox's events in one commit that is on disk when this returns."""
    disk.execute("PRAGMA synchronous=FULL")
    disk.executemany(f"INSERT INTO events ({EVENT}) VALUES (?, ?, ?, ?, ?)", rows)  # noqa: S608
    disk.commit()


def count(disk: sqlite3.Connection) -> int:
    """Events in an outbox, by its two indexes: to count the table is to read every event, a tenth of a second for 100,000."""
    places = ("IS NULL", "IS NOT NULL")
    counts = (disk.execute(f"SELECT count(*) FROM events WHERE place {place}") for place in places)  # noqa: S608
    return sum(found.fetchone()[0] for found in counts)


def erase(folder: Path, covers: Callable[[bytes], bool]) -> int:
    """Delete the events of all outboxes of a folder that `covers` says yes to; return how many. Raises sqlite3.Error.

    The workers that hold them may be at work: what one has just published is no longer here, and the consumer
    leaves it out.
    """
    erased = 0
    for path in sorted(folder.glob("outbox-*.db")):
        with contextlib.closing(open_disk(path, "FULL")) as disk:
            make_table(disk)
            disk.execute("PRAGMA secure_delete=ON")
            rows = disk.execute("SELECT sequence, value FROM events").fetchall()
            doomed = [(sequence,) for sequence, value in rows if covers(value)]
            disk.executemany("DELETE FROM events WHERE sequence = ?", doomed)
            disk.commit()
            disk.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            erased += len(doomed)
    return erased


def waiting(folder: Path) -> int:
    """Events that lie in a folder's outboxes, whoever holds them. Raises sqlite3.Error."""
    found = 0
    for path in folder.glob("outbox-*.db"):
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=10)) as disk:
            if disk.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone():
                found += count(disk)
    return found
