"""The event log: two append-only Delta tables, predictions and feedback, the truth that everything else is built from.

Turns micro-batches of rows, with the positions they stand for, into one Delta commit each. The feedback consumer
appends; Feast's offline store reads. It deliberately knows no event's meaning and no Kafka.

A commit carries, as application transactions, the last offset of each topic-partition ('<topic_id>/<partition>'), and is
made from the very snapshot whose positions were checked, so that a second writer with a stale view is refused
(Delta protocol, "Transaction Identifiers").
"""

import logging

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

log = logging.getLogger("ratchet.event_log")

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
    """The two tables below one folder or s3:// address."""

    def __init__(self, location: str) -> None:
        self._location = location.rstrip("/")
        self._tables: dict[str, DeltaTable] = {}
        for name, schema in SCHEMAS.items():
            DeltaTable.create(self.uri(name), schema, mode="ignore", name=name)

    def uri(self, name: str) -> str:
        """Address of a table."""
        return f"{self._location}/{name}"

    def position(self, name: str, place: str) -> int:
        """Last stored offset of '<topic_id>/<partition>', or -1, in the newest snapshot."""
        found = self._newest(name).transaction_version(place)
        return -1 if found is None else int(found)

    def append(self, name: str, rows: pa.Table) -> int:
        """Commit the rows that are not stored yet, with their positions; returns how many there were.

        Raises:
            ConcurrentCommitError: another writer was first; look at the positions again.

        """
        table = self._newest(name)
        places = sorted(
            {f"{i}/{p}" for i, p in zip(rows["topic_id"].to_pylist(), rows["partition"].to_pylist(), strict=True)}
        )
        stored = {place: table.transaction_version(place) for place in places}
        last: dict[str, int] = {}
        fresh = []
        for i, (topic_id, partition, offset) in enumerate(
            zip(*(rows[c].to_pylist() for c in ("topic_id", "partition", "offset")), strict=True)
        ):
            place = f"{topic_id}/{partition}"
            if stored[place] is None or offset > stored[place]:
                fresh.append(i)
                last[place] = max(last.get(place, -1), offset)
        if not fresh:
            return 0
        properties = CommitProperties(app_transactions=[Transaction(place, offset) for place, offset in last.items()])
        try:
            write_deltalake(table, rows.take(fresh), mode="append", commit_properties=properties)
        except CommitFailedError as error:
            raise ConcurrentCommitError(str(error)) from error
        except DeltaError as error:
            raise OSError(f"event log {name}: {error}") from error
        return len(fresh)

    def compact_if_due(self, name: str, every: int) -> None:
        """Every `every` commits: merge small files and write a checkpoint, so that cost does not grow with history."""
        table = self._newest(name)
        if table.version() % every == every - 1:
            table.optimize.compact()
            table.create_checkpoint()

    def version(self, name: str) -> int:
        """The table's newest version: it changes when rows do."""
        return int(self._newest(name).version())

    def positions(self, name: str) -> dict[str, int]:
        """Last stored offset by '<topic_id>/<partition>', from the rows themselves."""
        import duckdb

        files = self._newest(name).file_uris()
        if not files:
            return {}
        query = "SELECT topic_id || '/' || partition, max(\"offset\") FROM read_parquet(?) GROUP BY 1"
        with duckdb.connect() as connection:
            return {place: int(last) for place, last in connection.execute(query, [files]).fetchall()}

    def _newest(self, name: str) -> DeltaTable:
        if name in self._tables:
            self._tables[name].update_incremental()
        else:
            self._tables[name] = DeltaTable(self.uri(name))
        return self._tables[name]
