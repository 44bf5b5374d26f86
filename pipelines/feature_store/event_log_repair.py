"""Set a damaged tail of the event log aside, so that Kafka or the outbox delivers its events again.

The table then ends before the damage, and its positions go back. event_log.py calls this before it opens a table. Files are
read without Delta's library, which would accept a damaged commit.

A power cut damages only the newest commit, because each is synced before the next begins. So only a tail is repaired. Damage
followed by a whole commit raises EventLogDamaged: setting both aside would drop rows that are not delivered again.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.feature_store.event_log_tail import (
    HINT,
    EventLogDamaged,
    added_files,
    checkpoints,
    commit_path,
    commits,
    fault_of,
    hinted_version,
    removed_files,
    version_of,
)
from pipelines.feature_store.log_version import LOG
from serving.atomic_write import sync_all
from serving.file_lock import locked

log = logging.getLogger("ratchet.event_log")

DAMAGED = "_damaged"  # vacuum skips folders whose names begin with an underscore
DEEP = 3  # newest commits whose Parquet files are read to the last page; of the others, only the footer


@dataclass(frozen=True)
class Commit:
    """One commit of the log and its fault; None: it is whole."""

    version: int
    path: Path
    fault: str | None = None


def repair(table: Path) -> list[Path]:
    """Set a damaged tail and damaged checkpoints aside, under a lock; return the moved files.

    Raises:
        EventLogDamaged: a whole commit follows a damaged one, or no complete history would remain.
        OSError: a file cannot be read or moved.

    """
    if not (table / LOG).is_dir():
        return []
    with locked(table.parent / f".{table.name}.repair"):
        moved = _repair_checkpoints(table)
        return moved + _repair_tail(table)


def _repair_tail(table: Path) -> list[Path]:
    tail = _tail(table)
    if not tail:
        return []
    first = tail[0]
    if whole := [commit for commit in tail if commit.fault is None]:
        raise EventLogDamaged(
            f"event log {table.name}: {first.path} is {first.fault}, and commit {whole[-1].version} after it is whole: "
            f"restore that file from a backup, or move it and every later commit into {table / DAMAGED}; later rows"
            " are read again only if Kafka or the outbox still has them"
        )
    if first.version == 0:
        raise EventLogDamaged(
            f"event log {table.name}: {first.path} is {first.fault} and there is no earlier commit: restore the file from"
            f" a backup, or move the folder {table} away to begin an empty log"
        )
    moved = _set_aside(table, [commit.path for commit in tail] + _checkpoints_from(table, first.version))
    _keep_orphans(table, moved[0].parent, since=min(path.stat().st_mtime for path in moved))
    log.error(
        "event log %s: commit %d is %s: set aside in %s with %d more files; its events are read again from Kafka or the outbox",
        table.name,
        first.version,
        first.fault,
        moved[0].parent,
        len(moved) - 1,
    )
    return moved


def _checkpoints_from(table: Path, version: int) -> list[Path]:
    """Return the checkpoints from a version on, and the hint. Raises EventLogDamaged if no history before it would remain."""
    known = checkpoints(table)
    later = [path for path in known if version_of(path) >= version]
    start = max((version_of(path) for path in known if path not in later), default=-1)
    if later and not _complete(table, start, version - 1):
        raise EventLogDamaged(
            f"event log {table.name}: {commit_path(table, version)} is damaged, and only {later[0]} has the history before it:"
            " restore the commit and its files from a backup"
        )
    return [*later, *(table / LOG).glob(HINT)]


def _complete(table: Path, start: int, newest: int) -> bool:
    """Return whether all commits from a checkpoint (-1: the beginning) to a version exist."""
    return start >= newest or all(commit_path(table, version).exists() for version in range(start + 1, newest + 1))


def _tail(table: Path) -> list[Commit]:
    """Return the commits from the first damaged one to the newest; empty without damage.

    Checks the commits that no whole checkpoint covers, and always the newest DEEP.
    """
    numbered = commits(table)
    versions = [version for version, _ in numbered]
    if versions and versions != list(range(versions[0], versions[-1] + 1)):
        gap = next(version for version in range(versions[0], versions[-1]) if version not in versions)
        raise EventLogDamaged(
            f"event log {table.name}: {commit_path(table, gap)} is missing, but later commits exist: restore it from a backup"
        )
    covered = max((version_of(path) for path in checkpoints(table)), default=-1)
    recent = [pair for n, pair in enumerate(reversed(numbered)) if n < DEEP or pair[0] > covered]
    checked: list[Commit] = []
    replaced: set[str] = set()
    for n, (version, path) in enumerate(recent):
        checked.append(Commit(version, path, _unless_replaced(table, path, replaced, deep=n < DEEP)))
        replaced |= removed_files(path)
    damaged = [commit.version for commit in checked if commit.fault]
    return [commit for commit in reversed(checked) if commit.version >= min(damaged)] if damaged else []


def _unless_replaced(table: Path, path: Path, replaced: set[str], *, deep: bool) -> str | None:
    """Return the fault of a commit; None if a later commit has replaced all its files."""
    fault = fault_of(table, path, deep=False)
    if fault is None:
        return fault_of(table, path, deep=True) if deep else None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if (names := set(added_files(path))) and names <= replaced:
            return None
    return fault


def _repair_checkpoints(table: Path) -> list[Path]:
    """Set aside the newest checkpoints that cannot be read, and a hint to none; the commits have the same content."""
    left, damaged = checkpoints(table), []
    while left and not _readable(left[-1]):
        damaged.append(left.pop())
    hint = table / LOG / HINT
    covered = max((version_of(path) for path in left), default=-1)
    if hint.exists() and (damaged or hinted_version(hint) != covered):
        damaged.append(hint)
    if not damaged:
        return []
    newest = max((version for version, _ in commits(table)), default=-1)
    if not _complete(table, covered, newest) or max(covered, newest) < 0:
        raise EventLogDamaged(
            f"event log {table.name}: {damaged[0]} cannot be read, and the commits before it are missing: restore it from backup"
        )
    moved = _set_aside(table, damaged)
    log.error("event log %s: %s cannot be read: set aside, the commits have the same content", table.name, damaged[0])
    return moved


def _readable(path: Path) -> bool:
    try:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True


def _set_aside(table: Path, paths: Sequence[Path]) -> list[Path]:
    """Move files, newest first, to a folder named by the time; an interruption leaves a shorter damaged tail."""
    folder = table / DAMAGED / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    folder.mkdir(parents=True)
    moved = []
    for path in sorted(paths, reverse=True):
        path.rename(folder / path.name)
        moved.append(folder / path.name)
    sync_all([folder, folder.parent, table, table / LOG])
    return moved


def _keep_orphans(table: Path, folder: Path, since: float) -> None:
    """Hard-link the tail's Parquet files into `folder`, because vacuum deletes files that no commit names."""
    for path in table.glob("*.parquet"):
        with contextlib.suppress(OSError):  # without links, vacuum deletes the files after an hour
            if path.stat().st_mtime >= since - 60:
                os.link(path, folder / path.name)
