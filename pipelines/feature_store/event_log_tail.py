"""Check that the newest commits of a Delta table are whole, and sync them to disk.

event_log.py syncs with it, event_log_repair.py gets the fault of each commit.
"""

import contextlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.feature_store.log_version import LOG
from serving.atomic_write import sync_all

ACTIONS = "ratchet_actions"  # key in commitInfo: number of lines after it
HINT = "_last_checkpoint"


class EventLogDamaged(OSError):
    """Damage to events that would not be delivered again; the message names the file and the way out."""


def secure(table: Path, after: int, newest: int, written: str | None = None) -> None:
    """Check the commits of a range, and sync them and the files that they add.

    Args:
        table: the table's folder.
        after: the version before the first one to check.
        newest: the last one to check.
        written: name of a Parquet file that this process has just written and synced.

    Raises:
        EventLogDamaged: a commit is damaged.
        OSError: a file cannot be read or synced.

    """
    trusted = {written} if written else set[str]()
    for path in (commit_path(table, version) for version in range(newest, after, -1)):
        if not path.exists():  # a checkpoint covers it: Delta has read past it
            continue
        if fault := fault_of(table, path, deep=True, trusted=trusted):
            raise EventLogDamaged(f"event log {table.name}: {path} is {fault}")
        sync_all([*(table / name for name in added_files(path) if name not in trusted), path])
        trusted |= removed_files(path)  # vacuum may have deleted a replaced file of an earlier commit
    if newest > after:
        sync_all([table, table / LOG])


def sync_checkpoint(table: Path) -> None:
    """Sync the newest checkpoint and the hint that names it. Raises OSError."""
    hint = table / LOG / HINT
    version = hinted_version(hint)
    if version is not None:
        sync_all([table / LOG / f"{version:020d}.checkpoint.parquet", hint, table / LOG])


def lost_files(table: Path, active: Sequence[tuple[str, int]]) -> list[str]:
    """Return a message for each of a snapshot's files (name, bytes) that is missing or of another size."""
    return [f"{table / name}: {fault}" for name, size in active if (fault := _wrong_size(table / name, size))]


def commit_path(table: Path, version: int) -> Path:
    """Return the path of a commit."""
    return table / LOG / f"{version:020d}.json"


def commits(table: Path) -> list[tuple[int, Path]]:
    """Return version and path of every existing commit, in order."""
    paths = (Path(entry.path) for entry in os.scandir(table / LOG) if entry.name.endswith(".json"))
    return sorted((int(path.stem), path) for path in paths if path.stem.isdecimal())


def checkpoints(table: Path) -> list[Path]:
    """Return every checkpoint, the newest last. These tables are too small for checkpoints in several parts."""
    return sorted((table / LOG).glob("*.checkpoint.parquet"))


def version_of(checkpoint: Path) -> int:
    """Return the version that a checkpoint stands for."""
    return int(checkpoint.name.partition(".")[0])


def fault_of(table: Path, path: Path, *, deep: bool, trusted: Collection[str] = ()) -> str | None:
    """Return the fault of a commit or of its files, except `trusted` ones; `deep`: read the files to their end."""
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
            and unquote(action["add"]["path"]) not in trusted
            and (fault := _file_fault(table, action["add"], deep=deep))
        ):
            return fault
    return None


def _short(info: dict[str, Any], actions: Sequence[dict[str, Any]]) -> str | None:
    """Return the fault of a commit without ACTIONS (a compaction, or an older Ratchet's) that lacks expected actions."""
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
        # Vacuum deletes the files that a later commit replaced, so callers check for that.
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
        actual = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    return None if actual == size else f"{actual} bytes long instead of {size}"


def added_files(commit: Path) -> list[str]:
    """Return the names of the files that a commit adds. Raises ValueError if it is not JSON."""
    actions = (json.loads(line) for line in commit.read_bytes().splitlines())
    return [unquote(action["add"]["path"]) for action in actions if "add" in action]


def removed_files(commit: Path) -> set[str]:
    """Return the names of the files that a commit removes; empty if it cannot be read."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        actions = [json.loads(line) for line in commit.read_bytes().splitlines()]
        return {unquote(action["remove"]["path"]) for action in actions if "remove" in action}
    return set()


def hinted_version(hint: Path) -> int | None:
    """Return the version in the hint; None if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(hint.read_bytes())["version"])
    return None
