"""The event log: two append-only Delta tables, predictions and feedback, the truth that everything else is built from.

Turns micro-batches of rows, with the positions they stand for, into one Delta commit each. The feedback consumer
appends; Feast's offline store reads. It deliberately knows no event's meaning and no Kafka.

In a folder, rows and commit are on disk before `append` returns: outboxes delete what the log's positions cover. A tail
that was damaged all the same is set aside when the log is opened (event_log_repair.py). An object store is durable by itself.

A commit carries, as application transactions, the last offset of each topic-partition ('<topic_id>/<partition>'), and
is made from the very snapshot whose positions were checked, so that a second writer with a stale view is refused
(Delta protocol, "Transaction Identifiers").
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
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

log = logging.getLogger("ratchet.event_log")

# Small enough that merging never rewrites much of the history, large enough that a million rows are a dozen files.
FILE_BYTES = 16 * 1024 * 1024
# How long files that a compaction replaced are kept for readers of an older snapshot; they read for seconds.
KEEP_REPLACED_HOURS = 1
ERASE_ATTEMPTS = 10
# Statistics of columns would put texts and users into the table's history, which outlives their rows.
PRIVATE = {"delta.dataSkippingNumIndexedCols": "0", "delta.logRetentionDuration": "interval 1 hours"}
NEWEST_SYNCED = 3  # commits synced again when the log is opened: their writer may have been killed before it could
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
    """Another writer committed the same partition since we looked."""


class EventLog:
    """The two tables below one folder or s3:// address (credentials: AWS_*). Not thread-safe."""

    def __init__(self, location: str) -> None:
        """Make the tables that are missing and repair damaged tails.

        Raises:
            EventLogDamaged: damage that is no tail; an OSError.
            OSError: the tables cannot be opened.
            UnusableFolder: see `check_folder`.

        """
        check_folder(location)
        self._location = location.rstrip("/")
        self._local = "://" not in location
        self._tables: dict[str, DeltaTable] = {}
        self._cuts: dict[str, tuple[int, dict[str, int]]] = {}
        self._compactions: dict[str, int] = {}
        self._secured: dict[str, int] = {}
        self._seen = {name: self.version(name) for name in SCHEMAS}

    def uri(self, name: str) -> str:
        """Address of a table."""
        return f"{self._location}/{name}"

    def position(self, name: str, place: str) -> int:
        """Last offset of '<topic_id>/<partition>' that a commit stands for, or -1, in the newest snapshot."""
        found = self._newest(name).transaction_version(place)
        return -1 if found is None else int(found)

    def append(self, name: str, rows: pa.Table, positions: Mapping[str, int] | None = None) -> int:
        """Commit, at once, the rows that are not stored yet and how far the topics have been read.

        Args:
            name: "predictions" or "feedback".
            rows: in SCHEMAS[name].
            positions: last offset read by '<topic_id>/<partition>', where that is beyond the rows' own (the messages in
                between became no row).

        Returns:
            How many rows were new.

        Raises:
            ConcurrentCommitError: another writer was first; look at the positions again.
            OSError: the log cannot be written.

        """
        table = self._newest(name)
        try:
            last = {place: int(offset) for place, offset in (positions or {}).items()}
            last = {**_last_offsets(rows), **last}
            stored = {place: table.transaction_version(place) for place in last}
            ahead = {place: last[place] for place, at in stored.items() if at is None or at < last[place]}
            if not ahead:
                return 0
            fresh = _beyond(rows, {place: -1 if at is None else at for place, at in stored.items()})
            self._commit(name, table, fresh, [Transaction(*place) for place in ahead.items()])
        except CommitFailedError as error:
            raise ConcurrentCommitError(f"event log {name}: {error}") from error
        except DeltaError as error:
            raise OSError(f"event log {name}: {_line(error)}") from error
        return int(fresh.num_rows)

    def _commit(self, name: str, table: DeltaTable, rows: pa.Table, transactions: list[Transaction]) -> None:
        """Write the rows' file, then the commit that names it; in a folder, each is on disk before the next step."""
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
        """Whether a multiple of `every` commits has been passed since the last call, or since the log was opened."""
        before, self._seen[name] = self._seen[name], self.version(name)
        return self._seen[name] // every > before // every

    def compact(self, name: str) -> bool:
        """Merge small files and write a checkpoint; now and then delete what was replaced KEEP_REPLACED_HOURS ago.

        So cost and disk do not grow with the number of commits. Losing a race against a commit is no failure: the next
        time will do. Returns whether it compacted.
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
        """Delete the rows for which an SQL predicate holds, and the files that held them; return how many rows.

        Positions stay as they are. Readers of an older snapshot fail once. The table's own history keeps no values of rows from
        then on, and is cut to an hour. Raises ConcurrentCommitError if others commit again and again, or OSError.
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
            raise OSError(f"event log {name}: rows are deleted, their files not yet: {error}") from error
        return deleted

    def version(self, name: str) -> int:
        """The table's newest version: it changes when rows do."""
        return int(self._newest(name).version())

    def positions(self, name: str) -> dict[str, int]:
        """Last stored offset by '<topic_id>/<partition>', from the rows themselves: the cut that covers them all."""
        import duckdb

        version = self.version(name)
        if self._cuts.get(name, (-1, {}))[0] != version:
            rows = snapshot(self._tables[name])
            with duckdb.connect() as connection:
                connection.register("rows", rows)
                query = 'SELECT topic_id || \'/\' || "partition", max("offset") FROM rows GROUP BY 1'
                found = connection.execute(query).fetchall()
            self._cuts[name] = (version, {place: int(last) for place, last in found})
        return dict(self._cuts[name][1])

    def stored_at(self, name: str) -> datetime | None:
        """Return when the newest row of a table was stored; None if it has none."""
        import duckdb

        self._newest(name)
        with duckdb.connect() as connection:
            connection.register("rows", self._tables[name].to_pyarrow_dataset())
            found = connection.execute("SELECT epoch_us(max(created_timestamp)) FROM rows").fetchone()
        return None if not found or found[0] is None else EPOCH + timedelta(microseconds=found[0])

    def _newest(self, name: str, written: str | None = None) -> DeltaTable:
        """The table at its newest version, whose commits are checked and on disk. `written`: see `secure`."""
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
            self._forget(name)  # what is opened next is repaired first
            raise error if isinstance(error, OSError) else OSError(f"event log {name}: {_line(error)}") from error
        return self._tables[name]

    def _open(self, name: str) -> None:
        if self._local:
            repair(self._folder(name))
        try:
            table = DeltaTable(self.uri(name))
        except TableNotFoundError:
            with contextlib.suppress(DeltaError):  # whoever made it in the same moment was first
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
    """Return the rows of a table's snapshot as a dataset. A folder's files are named exactly: no URL, no pattern."""
    schema = pa.schema(table.schema().to_arrow())
    root = _local_root(table)
    if root is None:
        return table.to_pyarrow_dataset()
    files = [str(root / unquote(path)) for path in table._table.get_add_file_sizes()]
    return pds.dataset(files, schema=schema, format="parquet", filesystem=pfs.LocalFileSystem())


def _local_root(table: DeltaTable) -> Path | None:
    uri = str(table.table_uri)
    return Path(unquote(uri.removeprefix("file://"))) if uri.startswith("file://") else None


def _added(folder: Path, rows: pa.Table) -> AddAction:
    name, size = write_rows(folder, rows)
    return AddAction(name, size, {}, int(time.time() * 1000), True, f'{{"numRecords":{rows.num_rows}}}')


def _line(error: Exception) -> str:
    """The first line of an error: Delta's carry a stack trace."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _places(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["topic_id"], pc.cast(rows["partition"], pa.string()), "/")


def _last_offsets(rows: pa.Table) -> dict[str, int]:
    if not rows.num_rows:
        return {}
    grouped = (
        pa.table({"place": _places(rows), "offset": rows["offset"]}).group_by("place").aggregate([("offset", "max")])
    )
    return dict(zip(grouped["place"].to_pylist(), grouped["offset_max"].to_pylist(), strict=True))


def _beyond(rows: pa.Table, stored: Mapping[str, int]) -> pa.Table:
    """Rows whose offset is beyond what is stored of their place."""
    if not rows.num_rows:
        return rows
    limits = pc.index_in(_places(rows), value_set=pa.array(list(stored), pa.string()))
    stored_offsets = pa.array(list(stored.values()), pa.int64()).take(limits.combine_chunks())
    return rows.filter(pc.greater(rows["offset"], stored_offsets))
