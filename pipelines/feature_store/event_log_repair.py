"""The event log's damaged tail, set aside.

Turns a Delta table whose newest commits or checkpoints are damaged into one that ends before them, so that positions go
back and the outbox or Kafka delivers again. event_log.py calls it before it opens a table. It deliberately knows no Delta
library: a library that has read a damaged commit has believed it.

A power cut damages the newest commit alone, because each is on disk before the next begins. So only a tail is repaired:
damage with a whole commit after it is refused, for setting that aside would drop rows that nobody sends again.
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
    LOG,
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
from serving.atomic_write import sync_all
from serving.file_lock import locked

log = logging.getLogger("ratchet.event_log")

DAMAGED = "_damaged"  # Delta's vacuum leaves folders alone that begin with an underscore
DEEP = 3  # newest commits whose Parquet files are read to the last page, not by their footer alone


@dataclass(frozen=True)
class Commit:
    """One commit of the log and what is wrong with it, None if nothing is."""

    version: int
    path: Path
    fault: str | None = None


def repair(table: Path) -> list[Path]:
    """Set a damaged tail and damaged checkpoints aside; return what was moved. One process at a time does it.

    Raises:
        EventLogDamaged: a whole commit follows a damaged one, or no complete history would be left.
        OSError: the disk refuses.

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
            f"restore that file from a backup, or move it and every later commit into {table / DAMAGED}; rows from there"
            " on come back only if Kafka or the outbox still holds them"
        )
    if first.version == 0:
        raise EventLogDamaged(
            f"event log {table.name}: {first.path} is {first.fault} and there is no earlier commit: restore the file from"
            f" a backup, or move the folder {table} away to begin an empty log"
        )
    moved = _set_aside(table, [commit.path for commit in tail] + _checkpoints_from(table, first.version))
    _keep_orphans(table, moved[0].parent, since=min(path.stat().st_mtime for path in moved))
    log.error(
        "event log %s: commit %d is %s: set aside in %s with %d more; what it held is read again from Kafka or the outbox",
        table.name,
        first.version,
        first.fault,
        moved[0].parent,
        len(moved) - 1,
    )
    return moved


def _checkpoints_from(table: Path, version: int) -> list[Path]:
    """The checkpoints that hold a damaged commit, and the hint. Raises EventLogDamaged if nothing covers what was before."""
    known = checkpoints(table)
    found = [path for path in known if version_of(path) >= version]
    start = max((version_of(path) for path in known if path not in found), default=-1)
    if found and not _complete(table, start, version - 1):
        raise EventLogDamaged(
            f"event log {table.name}: {commit_path(table, version)} is damaged, and what was before it is in {found[0]} alone:"
            " restore the commit and its files from a backup"
        )
    return [*found, *(table / LOG).glob(HINT)]


def _complete(table: Path, start: int, newest: int) -> bool:
    """Whether commits lead from a checkpoint (-1: from the beginning) to a version."""
    return start >= newest or all(commit_path(table, version).exists() for version in range(start + 1, newest + 1))


def _tail(table: Path) -> list[Commit]:
    """The commits from the first damaged one to the newest; empty without damage.

    Looked at are those that no whole checkpoint covers, and the newest DEEP in any case.
    """
    numbered = commits(table)
    versions = [version for version, _ in numbered]
    if versions and versions != list(range(versions[0], versions[-1] + 1)):
        gap = next(version for version in range(versions[0], versions[-1]) if version not in versions)
        raise EventLogDamaged(
            f"event log {table.name}: {commit_path(table, gap)} is missing, and later commits are there: restore it from a backup"
        )
    covered = max((version_of(path) for path in checkpoints(table)), default=-1)
    recent = [pair for n, pair in enumerate(reversed(numbered)) if n < DEEP or pair[0] > covered]
    found: list[Commit] = []
    replaced: set[str] = set()
    for n, (version, path) in enumerate(recent):
        found.append(Commit(version, path, _unless_replaced(table, path, replaced, deep=n < DEEP)))
        replaced |= removed_files(path)
    damaged = [commit.version for commit in found if commit.fault]
    return [commit for commit in reversed(found) if commit.version >= min(damaged)] if damaged else []


def _unless_replaced(table: Path, path: Path, replaced: set[str], *, deep: bool) -> str | None:
    """The fault of a commit, unless it is a file that a later commit has replaced anyway."""
    fault = fault_of(table, path, deep=False)
    if fault is None:
        return fault_of(table, path, deep=True) if deep else None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if (names := set(added_files(path))) and names <= replaced:
            return None
    return fault


def _repair_checkpoints(table: Path) -> list[Path]:
    """Set aside the newest checkpoints that cannot be read, and a hint that names none: commits say the same."""
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
            f"event log {table.name}: {damaged[0]} cannot be read, and the commits before it are gone: restore it from a backup"
        )
    moved = _set_aside(table, damaged)
    log.error("event log %s: %s cannot be read: set aside, the commits say the same", table.name, damaged[0])
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
    """Move files into a folder named by the time, the newest first, so that a death leaves a shorter tail."""
    folder = table / DAMAGED / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    folder.mkdir(parents=True)
    moved = []
    for path in sorted(paths, reverse=True):
        path.rename(folder / path.name)
        moved.append(folder / path.name)
    sync_all([folder, folder.parent, table, table / LOG])
    return moved


def _keep_orphans(table: Path, folder: Path, since: float) -> None:
    """Link the Parquet files that were written with a tail beside it, before vacuum deletes what no commit names."""
    for path in table.glob("*.parquet"):
        with contextlib.suppress(OSError):  # a file system without links: the files stay an hour
            if path.stat().st_mtime >= since - 60:
                os.link(path, folder / path.name)
