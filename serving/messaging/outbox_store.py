"""The files of a folder of outboxes: which worker holds which, and the SQL on one.

Turns a folder into one SQLite file that this process alone may use, and events into its rows. outbox.py and outbox_disk.py
call it; `ratchet status` counts the waiting events with it.

An event's columns `place` ('<topic_id>/<partition>') and `last` (offset) say where it was published; NULL: not yet.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from serving.file_lock import try_lock

if TYPE_CHECKING:  # `ratchet status` counts without loading a Kafka client
    from serving.messaging.publisher import Outgoing

EVENT = "topic, key, value, place, last"
Row = tuple[str, bytes, bytes, str | None, int | None]  # the columns of EVENT
RECORD_PUBLISHED = "UPDATE events SET place = ?, last = ? WHERE sequence = ?"
DELETE = "DELETE FROM events WHERE sequence = ?"


class OutboxesTaken(RuntimeError):
    """Living processes hold every outbox of the folder."""


def claim(folder: Path) -> tuple[Path, IO[bytes]]:
    """Return the lowest-numbered outbox that no living process holds, and its lock: a restarted worker finds its file again.

    Raises:
        OutboxesTaken: each of a thousand is held.

    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        path = folder / f"outbox-{number}.db"
        lock = try_lock(lock_file(path))
        if lock is not None:
            return path, lock
    raise OutboxesTaken(f"{folder}: living processes hold all 1000 outboxes: stop some workers")


def lock_file(path: Path) -> Path:
    """Return the file whose lock goes with an outbox."""
    return path.with_suffix(".lock")


def open_disk(path: Path, synchronous: str) -> sqlite3.Connection:
    """Return a connection in WAL mode; "FULL" fsyncs each commit, "NORMAL" may lose the last ones in a power cut."""
    disk = sqlite3.connect(path, timeout=10)
    disk.execute("PRAGMA journal_mode=WAL")
    disk.execute(f"PRAGMA synchronous={synchronous}")
    return disk


def make_table(disk: sqlite3.Connection) -> None:
    """Create the table of events and its two indexes, if missing."""
    disk.executescript(
        "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY, topic TEXT NOT NULL, key BLOB NOT NULL,"
        " value BLOB NOT NULL, place TEXT, last INTEGER);"
        "CREATE INDEX IF NOT EXISTS waiting ON events (sequence) WHERE place IS NULL;"
        "CREATE INDEX IF NOT EXISTS placed ON events (place, last) WHERE place IS NOT NULL;"
    )


def write(disk: sqlite3.Connection, messages: "Sequence[Outgoing]") -> None:
    """Insert messages in one commit."""
    if messages:
        rows = [(m.topic, m.key, m.value) for m in messages]
        disk.executemany("INSERT INTO events (topic, key, value) VALUES (?, ?, ?)", rows)
        disk.commit()


def take_over(disk: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Insert another outbox's events in one commit that is on disk when this returns."""
    disk.execute("PRAGMA synchronous=FULL")
    disk.executemany(f"INSERT INTO events ({EVENT}) VALUES (?, ?, ?, ?, ?)", rows)  # noqa: S608
    disk.commit()


def count(disk: sqlite3.Connection) -> int:
    """Return the number of events in an outbox, by its two indexes: counting the table would read every event."""
    conditions = ("IS NULL", "IS NOT NULL")
    counts = (disk.execute(f"SELECT count(*) FROM events WHERE place {condition}") for condition in conditions)  # noqa: S608
    return sum(row.fetchone()[0] for row in counts)


def used_bytes(disk: sqlite3.Connection) -> int:
    """Return the bytes of an outbox's pages that are in use."""
    pages = disk.execute("PRAGMA page_count").fetchone()[0] - disk.execute("PRAGMA freelist_count").fetchone()[0]
    return int(pages * disk.execute("PRAGMA page_size").fetchone()[0])


def unpublished(disk: sqlite3.Connection, topics: tuple[str, str], limit: int) -> list[tuple[int, str, bytes, bytes]]:
    """Return (sequence, topic, key, value) of the oldest events that have not been published."""
    condition = "place IS NULL AND topic IN (?, ?) ORDER BY sequence LIMIT ?"
    query = f"SELECT sequence, topic, key, value FROM events WHERE {condition}"  # noqa: S608
    return disk.execute(query, (*topics, limit)).fetchall()


def any_published(disk: sqlite3.Connection) -> bool:
    """Return whether published events are still on disk."""
    return disk.execute("SELECT 1 FROM events WHERE place IS NOT NULL LIMIT 1").fetchone() is not None


def forget_publications(disk: sqlite3.Connection, topic_ids: Iterable[str]) -> int:
    """Make events unpublished again whose topic is not one of `topic_ids`; return how many. The caller commits."""
    known = [f"{topic_id}/%" for topic_id in topic_ids]
    gone = "".join(" AND place NOT LIKE ?" for _ in known)
    return disk.execute(f"UPDATE events SET place = NULL WHERE place IS NOT NULL{gone}", known).rowcount  # noqa: S608


def delete_stored(disk: sqlite3.Connection, positions: Mapping[str, int]) -> None:
    """Delete the events up to the offsets that the event log holds, by '<topic_id>/<partition>', and commit."""
    disk.executemany("DELETE FROM events WHERE place = ? AND last <= ?", list(positions.items()))
    disk.commit()


def erase(folder: Path, covers: Callable[[bytes], bool]) -> int:
    """Delete the events of all outboxes of a folder for which `covers` is true; return how many. Raises sqlite3.Error.

    Workers may hold the outboxes meanwhile. An event that a worker has just published is not here any more; the feedback
    consumer excludes it.
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
    """Return the number of events in all outboxes of a folder. Raises sqlite3.Error."""
    events = 0
    for path in folder.glob("outbox-*.db"):
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=10)) as disk:
            if disk.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone():
                events += count(disk)
    return events
