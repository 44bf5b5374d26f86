"""Damage to the event log: found in its newest commits, and the damaged tail set aside.

Turns a Delta table's folder into the first commit that cannot be trusted, and moves a damaged tail out of the log, so that
positions go back and the outbox or Kafka delivers again. event_log.py calls it. It deliberately knows no Delta library: a
library that has read a damaged commit has believed it.

A power cut damages the newest commit alone, because each is on disk before the next begins. So only a tail is repaired:
damage with a whole commit after it is refused, for setting that aside would drop rows that nobody sends again.
"""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from serving.atomic_write import sync_all

log = logging.getLogger("ratchet.event_log")

ACTIONS = "ratchet_actions"  # in commitInfo: how many lines follow it
LOG = "_delta_log"
DAMAGED = "_damaged"  # Delta's vacuum leaves folders alone that begin with an underscore
HINT = "_last_checkpoint"
DEEP = 3  # newest commits whose Parquet files are read to the last page, not by their footer alone


class EventLogDamaged(OSError):
    """A part of the event log is damaged that nobody would deliver again; the message names file and way out."""


@dataclass(frozen=True)
class Commit:
    """One commit of the log and what is wrong with it, None if nothing is."""

    version: int
    path: Path
    fault: str | None = None


def secure(table: Path, after: int, newest: int, written: str | None = None) -> None:
    """Check the commits of a range, and wait until they and the files that they add are on disk.

    Args:
        table: the table's folder.
        after: the version before the first one to check.
        newest: the last one to check.
        written: name of a Parquet file that this process has just written and synced itself.

    Raises:
        EventLogDamaged: one of them cannot be trusted.
        OSError: the disk refuses.

    """
    for path in (_commit(table, version) for version in range(after + 1, newest + 1)):
        if not path.exists():  # a checkpoint covers it, or Delta would not have read this far
            continue
        if fault := _fault(table, path, deep=True, known=written):
            raise EventLogDamaged(f"event log {table.name}: {path} is {fault}")
        sync_all([*(table / name for name in _added(path) if name != written), path])
    if newest > after:
        sync_all([table, table / LOG])


def sync_checkpoint(table: Path) -> None:
    """Wait until the newest checkpoint and the hint that names it are on disk. Raises OSError."""
    hint = table / LOG / HINT
    version = _hinted(hint)
    if version is not None:
        sync_all([table / LOG / f"{version:020d}.checkpoint.parquet", hint, table / LOG])


def repair(table: Path) -> list[Path]:
    """Set a damaged tail and damaged checkpoints aside; return what was moved. One process at a time does it.

    Raises:
        EventLogDamaged: a whole commit follows a damaged one, or no complete history would be left.
        OSError: the disk refuses.

    """
    if not (table / LOG).is_dir():
        return []
    with _alone(table):
        moved = _repair_checkpoints(table)
        return moved + _repair_tail(table)


def lost_files(table: Path, active: Sequence[tuple[str, int]]) -> list[str]:
    """Return what is wrong with a snapshot's files (name, bytes), a sentence each: missing, or of another size."""
    return [f"{table / name}: {fault}" for name, size in active if (fault := _wrong_size(table / name, size))]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def _commit(table: Path, version: int) -> Path:
    return table / LOG / f"{version:020d}.json"


def _commits(table: Path) -> list[tuple[int, Path]]:
    found = (Path(entry.path) for entry in os.scandir(table / LOG) if entry.name.endswith(".json"))
    return sorted((int(path.stem), path) for path in found if path.stem.isdecimal())


def _checkpoints(table: Path) -> list[Path]:
    return sorted((table / LOG).glob("*.checkpoint.parquet"))


def _version_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition(".")[0])


def _fault(table: Path, path: Path, *, deep: bool, known: str | None = None) -> str | None:
    """What is wrong with a commit, its files included; None if nothing is."""
    text = path.read_bytes()
    if not text:
        return "empty"
    try:
        actions: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    except ValueError:
        return "not JSON to its end"
    info = actions[0].get("commitInfo", {}) if isinstance(actions[0], dict) else {}
    expected = info.get(ACTIONS)
    if expected is not None and len(actions) != 1 + int(expected):
        return f"{len(actions) - 1} of {expected} actions"
    if expected is None and (short := _short(info, actions)):
        return short
    for action in actions:
        if (
            "add" in action
            and action["add"]["path"] != known
            and (fault := _file_fault(table, action["add"], deep=deep))
        ):
            return fault
    return None


def _short(info: dict[str, Any], actions: Sequence[dict[str, Any]]) -> str | None:
    """Whether a commit without our count, a compaction or one of an older Ratchet, lacks actions that it must have."""
    counts = {kind: sum(kind in action for action in actions) for kind in ("add", "remove", "txn", "metaData")}
    metrics = info.get("operationMetrics", {})
    wanted = {"add": metrics.get("num_added_files", metrics.get("numFilesAdded", 0))}
    wanted["remove"] = metrics.get("numFilesRemoved", 0)
    wanted["txn"] = int(info.get("operation") == "WRITE")
    wanted["metaData"] = int(info.get("operation") == "CREATE TABLE")
    if not info or any(counts[kind] < int(number) for kind, number in wanted.items()):
        return "cut off between two actions"
    return None


def _file_fault(table: Path, add: dict[str, Any], *, deep: bool) -> str | None:
    path = table / unquote(add["path"])
    if fault := _wrong_size(path, add["size"]):
        # A later commit may have replaced the file, and vacuum deleted it: whoever calls knows the newest commits alone.
        return f"its file {path.name} is {fault}"
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if deep:
                for _ in file.iter_batches():
                    pass
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"its file {path.name} cannot be read: {str(error).splitlines()[0][:120]}"
    return None


def _wrong_size(path: Path, size: int) -> str | None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    return None if found == size else f"{found} bytes long instead of {size}"


def _added(commit: Path) -> list[str]:
    actions = (json.loads(line) for line in commit.read_bytes().splitlines())
    return [unquote(action["add"]["path"]) for action in actions if "add" in action]


# --- repair -----------------------------------------------------------------------------------------------------------


def _repair_tail(table: Path) -> list[Path]:
    commits = _tail(table)
    if not commits:
        return []
    first = commits[0]
    if whole := [commit for commit in commits if commit.fault is None]:
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
    moved = _set_aside(table, [commit.path for commit in commits] + _checkpoints_from(table, first.version))
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
    checkpoints = _checkpoints(table)
    found = [path for path in checkpoints if _version_of(path) >= version]
    start = max((_version_of(path) for path in checkpoints if path not in found), default=-1)
    if found and not _complete(table, start, version - 1):
        raise EventLogDamaged(
            f"event log {table.name}: {_commit(table, version)} is damaged, and what was before it is in {found[0]} alone:"
            " restore the commit and its files from a backup"
        )
    return [*found, *(table / LOG).glob(HINT)]


def _complete(table: Path, start: int, newest: int) -> bool:
    """Whether commits lead from a checkpoint (-1: from the beginning) to a version."""
    return start >= newest or all(_commit(table, version).exists() for version in range(start + 1, newest + 1))


def _tail(table: Path) -> list[Commit]:
    """The commits from the first damaged one to the newest; empty without damage.

    Looked at are those that no whole checkpoint covers, and the newest DEEP in any case.
    """
    commits = _commits(table)
    versions = [version for version, _ in commits]
    if versions and versions != list(range(versions[0], versions[-1] + 1)):
        gap = next(version for version in range(versions[0], versions[-1]) if version not in versions)
        raise EventLogDamaged(
            f"event log {table.name}: {_commit(table, gap)} is missing, and later commits are there: restore it from a backup"
        )
    covered = max((_version_of(path) for path in _checkpoints(table)), default=-1)
    recent = [pair for n, pair in enumerate(reversed(commits)) if n < DEEP or pair[0] > covered]
    found: list[Commit] = []
    replaced: set[str] = set()
    for n, (version, path) in enumerate(recent):
        found.append(Commit(version, path, _unless_replaced(table, path, replaced, deep=n < DEEP)))
        replaced |= _removed(path)
    damaged = [commit.version for commit in found if commit.fault]
    return [commit for commit in reversed(found) if commit.version >= min(damaged)] if damaged else []


def _unless_replaced(table: Path, path: Path, replaced: set[str], *, deep: bool) -> str | None:
    """The fault of a commit, unless it is a file that a later commit has replaced anyway."""
    fault = _fault(table, path, deep=False)
    if fault is None:
        return _fault(table, path, deep=True) if deep else None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if (names := set(_added(path))) and names <= replaced:
            return None
    return fault


def _removed(commit: Path) -> set[str]:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        actions = [json.loads(line) for line in commit.read_bytes().splitlines()]
        return {unquote(action["remove"]["path"]) for action in actions if "remove" in action}
    return set()


def _repair_checkpoints(table: Path) -> list[Path]:
    """Set aside the newest checkpoints that cannot be read, and a hint that names none: commits say the same."""
    checkpoints, damaged = _checkpoints(table), []
    while checkpoints and not _readable(checkpoints[-1]):
        damaged.append(checkpoints.pop())
    hint = table / LOG / HINT
    covered = max((_version_of(path) for path in checkpoints), default=-1)
    if hint.exists() and (damaged or _hinted(hint) != covered):
        damaged.append(hint)
    if not damaged:
        return []
    newest = max((version for version, _ in _commits(table)), default=-1)
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


def _hinted(hint: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(hint.read_bytes())["version"])
    return None


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


@contextlib.contextmanager
def _alone(table: Path) -> Iterator[None]:
    """Hold the table's repair lock."""
    with (table.parent / f".{table.name}.repair").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
