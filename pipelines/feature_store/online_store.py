"""Feast's SQLite online store, with upserts ordered by event time.

Feast loads it by the class path in feature_store.yaml. Stock Feast lets a replayed old event overwrite a newer value, and
writes without WAL. This subclass replaces the statement that writes, and can delete old rows.
"""

import sqlite3
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig, _table_id

FORGET_ROWS, FORGET_SECONDS = 20_000, 1.0


class EventTimeOnlineStoreConfig(SqliteOnlineStoreConfig):  # type: ignore[misc]  # feast has no types
    """Configuration of Feast's SQLite online store, under another type."""

    type: Literal["pipelines.feature_store.online_store.EventTimeOnlineStore"] = (
        "pipelines.feature_store.online_store.EventTimeOnlineStore"
    )


class EventTimeOnlineStore(SqliteOnlineStore):  # type: ignore[misc]  # feast has no types
    """SQLite online store in which the newest event time wins; for equal times, the last write.

    Feast reads event_ts in whole seconds. So created_ts, which it never reads, has the event time in microseconds.
    """

    @staticmethod
    def _get_db_path(config: Any) -> str:
        return str(config.repo_path / config.online_store.path)

    def _get_conn(self, config: Any) -> sqlite3.Connection:
        fresh = self._conn is None
        connection: sqlite3.Connection = super()._get_conn(config)
        if fresh:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=10000")
        return connection

    def online_write_batch(
        self, config: Any, table: Any, data: list[Any], progress: Callable[[int], Any] | None
    ) -> None:
        """Upsert one batch in one short transaction."""
        name = _table_id(config.project, table, config.registry.enable_online_feature_view_versioning)
        rows = []
        for key, values, moment, _ in data:
            entity = serialize_entity_key(key, entity_key_serialization_version=config.entity_key_serialization_version)
            seconds = moment.timestamp()
            rows += [
                (entity, feature, value.SerializeToString(), int(seconds), int(seconds * 1_000_000))
                for feature, value in values.items()
            ]
        statement = (
            f'INSERT INTO "{name}" (entity_key, feature_name, value, event_ts, created_ts) '  # noqa: S608
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
            "event_ts = excluded.event_ts, created_ts = excluded.created_ts WHERE excluded.created_ts >= created_ts"
        )
        connection = self._get_conn(config)
        with connection:
            connection.executemany(statement, rows)
        if progress:
            progress(len(data))

    def forget(self, config: Any, table: Any, before: datetime, *, seconds: float = FORGET_SECONDS) -> int:
        """Delete features with an event before a time, for at most `seconds`; return the number of rows.

        Rows are stored roughly in the order of their first event, so scanning the oldest ones needs no index.
        """
        name = _table_id(config.project, table, config.registry.enable_online_feature_view_versioning)
        oldest = f'SELECT rowid FROM "{name}" ORDER BY rowid LIMIT {FORGET_ROWS}'  # noqa: S608
        statement = f'DELETE FROM "{name}" WHERE rowid IN ({oldest}) AND created_ts < ?'  # noqa: S608
        connection, deadline, total = self._get_conn(config), time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            with connection:
                deleted = connection.execute(statement, (int(before.timestamp() * 1_000_000),)).rowcount
            total += deleted
            if deleted < FORGET_ROWS // 2:
                break
        return total
