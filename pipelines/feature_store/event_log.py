"""Store predictions and feedback in two append-only Delta tables, the source of truth of the feature store.

Each micro-batch is one Delta commit of rows and positions. The feedback consumer appends, Feast's offline store reads.

In a folder, rows and commit are on disk before `append` returns, because outboxes delete the events that the log's positions
cover. A damaged tail is set aside when the log is opened (event_log_repair.py). An object store needs neither.

A commit carries the last offset of each topic-partition ('<topic_id>/<partition>') as application transactions. It is based on
the snapshot whose positions were checked, so a second writer with a stale snapshot is refused (Delta protocol, "Transaction
Identifiers").
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.fs as pfs
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from pipelines.feature_store.event_log_files import check_folder, write_rows
from pipelines.feature_store.event_log_repair import repair
from pipelines.feature_store.event_log_tail import ACTIONS, EventLogDamaged, lost_files, secure, sync_checkpoint
from pipelines.feature_store.log_version import newest_version
from pipelines.feature_store.positions import last_offsets, last_stored_offsets, rows_beyond

log = logging.getLogger("ratchet.event_log")

# Small, so that a compaction rewrites little of the history; large enough to hold a million rows in a dozen files.
FILE_BYTES = 16 * 1024 * 1024
# Replaced files are kept so long for readers of an older snapshot, who need seconds.
KEEP_REPLACED_HOURS = 1
ERASE_ATTEMPTS = 10
# No column statistics: they would keep texts and users in the table's history after their rows are erased.
PRIVATE = {"delta.dataSkippingNumIndexedCols": "0", "delta.logRetentionDuration": "interval 1 hours"}
NEWEST_SYNCED = 3  # commits synced again when the log is opened, in case their writer was killed before it did
VACUUM_EVERY = 10  # compactions by one process, the first included

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = pa.timestamp("us", tz="UTC")
_POSITION = [("topic_id", pa.string()), ("partition", pa.int32()), ("offset", pa.int64())]
SCHEMAS: dict[str, pa.Schema] = {
    "predictions": pa.schema(
        [
            ("prediction_id", pa.string()),
            ("model_version", pa.string()),
            ("generation", pa.int64()),
            ("text", pa.string()),
            ("predicted_label", pa.string()),
            ("confidence", pa.float64()),
            ("probabilities", pa.string()),
            ("user", pa.string()),
            ("metadata", pa.string()),
            ("audit", pa.bool_()),
            ("event_timestamp", _TIME),
            ("created_timestamp", _TIME),
            *_POSITION,
        ]
    ),
    "feedback": pa.schema(
        [
            ("feedback_id", pa.string()),
            ("prediction_id", pa.string()),
            ("kind", pa.string()),
            ("value", pa.string()),
            ("user", pa.string()),
            ("event_timestamp", _TIME),
            ("created_timestamp", _TIME),
            *_POSITION,
        ]
    ),
}


class ConcurrentCommitError(RuntimeError):
    """Another writer committed the same topic-partition since its position was read."""


class EventLog:
    """The two tables in one folder or at an s3:// address (credentials: AWS_*). Not thread-safe."""

    def __init__(self, location: str) -> None:
        """Create missing tables and repair damaged tails.

        Raises:
            EventLogDamaged: damage that is not confined to the tail; an OSError.
            OSError: the tables cannot be opened.
            UnusableFolder: see `check_folder`.

        """
        check_folder(location)
        self._location = location.rstrip("/")
        self._local = "://" not in location
        self._tables: dict[str, DeltaTable] = {}
        self._cuts: dict[str, tuple[int, dict[str, int]]] = {}
        self._compactions, self._secured = dict[str, int](), dict[str, int]()
        self._seen = {name: self.version(name) for name in SCHEMAS}

    def uri(self, name: str) -> str:
        """Return the address of a table."""
        return f"{self._location}/{name}"

    def position(self, name: str, topic_partition: str) -> int:
        """Return the last committed offset of '<topic_id>/<partition>' in the newest snapshot; -1 if there is none."""
        offset = self._newest(name).transaction_version(topic_partition)
        return -1 if offset is None else int(offset)

    def append(self, name: str, rows: pa.Table, positions: Mapping[str, int] | None = None) -> int:
        """Commit the rows that are not stored yet, with the positions up to which topics were read; return their number.

        Args:
            name: "predictions" or "feedback".
            rows: in SCHEMAS[name].
            positions: last offset read, by '<topic_id>/<partition>', where it exceeds that of the rows because later
                messages gave no row.

        Raises:
            ConcurrentCommitError: another writer was first; read the positions again.
            OSError: the log cannot be written.

        """
        table = self._newest(name)
        try:
            last = last_offsets(rows) | {key: int(offset) for key, offset in (positions or {}).items()}
            stored = {key: table.transaction_version(key) for key in last}
            ahead = {key: last[key] for key, offset in stored.items() if offset is None or offset < last[key]}
            if not ahead:
                return 0
            fresh = rows_beyond(rows, {key: -1 if offset is None else offset for key, offset in stored.items()})
            self._commit(name, table, fresh, [Transaction(key, offset) for key, offset in ahead.items()])
        except CommitFailedError as error:
            raise ConcurrentCommitError(f"event log {name}: {error}") from error
        except DeltaError as error:
            raise OSError(f"event log {name}: {_line(error)}") from error
        return int(fresh.num_rows)

    def _commit(self, name: str, table: DeltaTable, rows: pa.Table, transactions: list[Transaction]) -> None:
        """Write the rows' file, then the commit that names it; in a folder, sync each before the next step."""
        if not self._local:
            properties = CommitProperties(app_transactions=transactions)
            write_deltalake(table, rows, mode="append", commit_properties=properties)
            return
        added = [_added(self._folder(name), rows)] if rows.num_rows else []
        count = {ACTIONS: str(len(added) + len(transactions))}
        try:
            table.create_write_transaction(
                added,
                "append",
                table.schema(),
                commit_properties=CommitProperties(app_transactions=transactions, custom_metadata=count),
                post_commithook_properties=PostCommitHookProperties(create_checkpoint=False),
            )
        except BaseException:
            for action in added:
                (self._folder(name) / action.path).unlink(missing_ok=True)
            raise
        self._newest(name, written=added[0].path if added else None)

    def compaction_due(self, name: str, every: int) -> bool:
        """Return whether the version passed a multiple of `every` since the last call, or since the log was opened."""
        before, self._seen[name] = self._seen[name], self.version(name)
        return self._seen[name] // every > before // every

    def compact(self, name: str) -> bool:
        """Merge small files and write a checkpoint, so that cost and disk do not grow with the number of commits.

        Every VACUUM_EVERY calls, delete files that were replaced KEEP_REPLACED_HOURS ago. Return whether it compacted: a
        concurrent commit makes it fail, and the next call tries again.
        """
        table = self._newest(name)
        try:
            table.optimize.compact(target_size=FILE_BYTES)
            self._compactions[name] = self._compactions.get(name, -1) + 1
            if self._compactions[name] % VACUUM_EVERY == 0:
                table.vacuum(KEEP_REPLACED_HOURS, enforce_retention_duration=False, dry_run=False)
            table.create_checkpoint()
            table.cleanup_metadata()
            if self._local:
                sync_checkpoint(self._folder(name))
        except (DeltaError, OSError) as error:
            log.warning("event log %s was not compacted: %s", name, error)
            return False
        return True

    def erase(self, name: str, predicate: str) -> int:
        """Delete the rows that satisfy an SQL predicate, and the files that held them; return the number of rows.

        Positions stay. Readers of an older snapshot fail once. From then on the table's history has no values of rows, and is
        truncated to an hour. Raises ConcurrentCommitError after ERASE_ATTEMPTS lost races, or OSError.
        """
        for attempt in range(1, ERASE_ATTEMPTS + 1):
            table = self._newest(name)
            try:
                if any(table.metadata().configuration.get(key) != value for key, value in PRIVATE.items()):
                    table.alter.set_table_properties(PRIVATE)
                deleted = int(table.delete(predicate)["num_deleted_rows"] or 0)
                break
            except CommitFailedError as error:
                if attempt == ERASE_ATTEMPTS:
                    raise ConcurrentCommitError(f"event log {name}: {error}") from error
            except DeltaError as error:
                raise OSError(f"event log {name}: {error}") from error
        try:
            table.vacuum(0, enforce_retention_duration=False, dry_run=False)
            table.create_checkpoint()
            table.cleanup_metadata()
        except DeltaError as error:
            raise OSError(f"event log {name}: rows are deleted, but not their files: {error}; erase again") from error
        return deleted

    def version(self, name: str) -> int:
        """Return the table's newest version, which changes whenever rows do. In a folder its commits are not read or checked."""
        on_disk = newest_version(self._folder(name)) if self._local and name in self._tables else None
        return int(self._newest(name).version()) if on_disk is None else on_disk

    def positions(self, name: str) -> dict[str, int]:
        """Return the cut that covers all rows: their last offset by '<topic_id>/<partition>'."""
        if self._cuts.get(name, (-1, {}))[0] != (version := self.version(name)):
            self._cuts[name] = (version, last_stored_offsets(self.rows(name)))
        return dict(self._cuts[name][1])

    def is_known(self, name: str, topic_partition: str) -> bool:
        """Return whether a position of a topic-partition was ever committed, be it -1."""
        return self._newest(name).transaction_version(topic_partition) is not None

    def rows(self, name: str) -> pds.Dataset:
        """Return the rows of a table's newest snapshot."""
        self._newest(name)
        return snapshot(self._tables[name])

    def stored_at(self, name: str) -> datetime | None:
        """Return when the newest row of a table was stored; None for an empty table."""
        return pc.max(self.rows(name).to_table(["created_timestamp"])["created_timestamp"]).as_py()  # type: ignore[no-any-return]

    def _newest(self, name: str, written: str | None = None) -> DeltaTable:
        """Return the table at its newest version, its commits checked and synced. `written`: see `secure`."""
        try:
            if name in self._tables:
                self._tables[name].update_incremental()
            else:
                self._open(name)
            if self._local:
                newest = int(self._tables[name].version())
                secure(self._folder(name), self._secured[name], newest, written)
                self._secured[name] = newest
        except (DeltaError, OSError) as error:
            self._forget(name)  # so that the next call opens and repairs it
            raise error if isinstance(error, OSError) else OSError(f"event log {name}: {_line(error)}") from error
        return self._tables[name]

    def _open(self, name: str) -> None:
        if self._local:
            repair(self._folder(name))
        try:
            table = DeltaTable(self.uri(name))
        except TableNotFoundError:
            with contextlib.suppress(DeltaError):  # another process created it in the same moment
                DeltaTable.create(self.uri(name), SCHEMAS[name], mode="ignore", name=name, configuration=PRIVATE)
            table = DeltaTable(self.uri(name))
        if self._local:
            sizes = table._table.get_add_file_sizes()
            if lost := lost_files(self._folder(name), [(unquote(path), size) for path, size in sizes.items()]):
                raise EventLogDamaged(f"event log {name}: {lost[0]} ({len(lost)} such files): restore from a backup")
            self._secured[name] = max(-1, int(table.version()) - NEWEST_SYNCED)
        self._tables[name] = table

    def _forget(self, name: str) -> None:
        self._tables.pop(name, None)
        self._cuts.pop(name, None)

    def _folder(self, name: str) -> Path:
        return Path(self._location) / name


def snapshot(table: DeltaTable) -> pds.Dataset:
    """Return the rows of a table's snapshot as a dataset. A folder's files are named literally, not by URL or pattern."""
    uri = str(table.table_uri)
    if not uri.startswith("file://"):
        return table.to_pyarrow_dataset()
    root = Path(unquote(uri.removeprefix("file://")))
    files = [str(root / unquote(path)) for path in table._table.get_add_file_sizes()]
    schema = pa.schema(table.schema().to_arrow())
    return pds.dataset(files, schema=schema, format="parquet", filesystem=pfs.LocalFileSystem())


def _added(folder: Path, rows: pa.Table) -> AddAction:
    return AddAction(*write_rows(folder, rows), {}, int(time.time() * 1000), True, f'{{"numRecords":{rows.num_rows}}}')


def _line(error: Exception) -> str:
    """Return the first line of an error; Delta's errors carry a stack trace."""
    return next(iter(str(error).splitlines()), type(error).__name__)
