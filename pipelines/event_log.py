"""The event log: two append-only Delta tables, predictions and feedback, the truth that everything else is built from.

Turns micro-batches of rows, with the positions they stand for, into one Delta commit each. The feedback consumer
appends; Feast's offline store reads. It deliberately knows no event's meaning and no Kafka.

A commit carries, as application transactions, the last offset of each topic-partition ('<topic_id>/<partition>'), and
is made from the very snapshot whose positions were checked, so that a second writer with a stale view is refused
(Delta protocol, "Transaction Identifiers").
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

log = logging.getLogger("ratchet.event_log")

# Small enough that merging never rewrites much of the history, large enough that a million rows are a dozen files.
FILE_BYTES = 16 * 1024 * 1024
# How long files that a compaction replaced are kept for readers of an older snapshot; they read for seconds.
KEEP_REPLACED_HOURS = 1
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
        """Make the tables that are missing. Raises OSError when they cannot be opened."""
        self._location = location.rstrip("/")
        self._tables: dict[str, DeltaTable] = {}
        self._cuts: dict[str, tuple[int, dict[str, int]]] = {}
        self._compactions: dict[str, int] = {}
        for name, schema in SCHEMAS.items():
            try:
                DeltaTable.create(self.uri(name), schema, mode="ignore", name=name)
            except DeltaError:
                self._newest(name)  # whoever made it in the same moment was first
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
            write_deltalake(
                table,
                fresh,
                mode="append",
                commit_properties=CommitProperties(app_transactions=[Transaction(*place) for place in ahead.items()]),
            )
        except CommitFailedError as error:
            raise ConcurrentCommitError(f"event log {name}: {error}") from error
        except DeltaError as error:
            raise OSError(f"event log {name}: {error}") from error
        return int(fresh.num_rows)

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
        except DeltaError as error:
            log.warning("event log %s was not compacted: %s", name, error)
            return False
        return True

    def version(self, name: str) -> int:
        """The table's newest version: it changes when rows do."""
        return int(self._newest(name).version())

    def positions(self, name: str) -> dict[str, int]:
        """Last stored offset by '<topic_id>/<partition>', from the rows themselves: the cut that covers them all."""
        import duckdb

        version = self.version(name)
        if self._cuts.get(name, (-1, {}))[0] != version:
            rows = self._tables[name].to_pyarrow_dataset()
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

    def _newest(self, name: str) -> DeltaTable:
        try:
            if name in self._tables:
                self._tables[name].update_incremental()
            else:
                self._tables[name] = DeltaTable(self.uri(name))
        except DeltaError as error:
            self._tables.pop(name, None)
            raise OSError(f"event log {name}: {error}") from error
        return self._tables[name]


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
