"""Run SQL over the newest snapshot of the event log, without Feast.

Turns a query that names `predictions` and `feedback` into rows. event_search.py and feedback_search.py bring the queries. One
database lives as long as its object, so that the footers of Parquet files are read once: a file of the log never changes.
"""

import threading
from typing import Any

import duckdb

from pipelines.feature_store.event_log import EventLog

TABLES = ("predictions", "feedback")
THREADS = 2
GLOB = frozenset("*?[]{}")  # in a file's name, DuckDB would read a pattern


class EventQueries:
    """Queries one event log. Thread-safe: one query at a time; who holds `lock` runs several in a row."""

    def __init__(self, location: str) -> None:
        """Open the log. Raises OSError."""
        self.log = EventLog(location)
        self.lock = threading.RLock()
        self._local = "://" not in location
        self._database = duckdb.connect(config={"threads": THREADS})
        self._database.execute("SET parquet_metadata_cache = true")
        self._shown: dict[str, list[str]] = {}

    def run(self, query: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a query. Raises OSError if the log cannot be read."""
        with self.lock:
            for name in TABLES:
                self._show(name)
            result = self._database.execute(query, values)
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def parquet_files(self, name: str) -> list[str]:
        """Return the files of a table's newest snapshot; none if DuckDB's own reader cannot name them."""
        with self.lock:
            files = list(self.log.rows(name).files)
        return files if self._local and not GLOB.intersection("".join(files)) else []

    def _show(self, name: str) -> None:
        """Give a table's newest snapshot to queries: its files where DuckDB can name them, else through Arrow.

        DuckDB's own reader skips row groups by their statistics, which halves the cost of a search.
        """
        rows = self.log.rows(name)
        if self._shown.get(name) == list(rows.files):
            return
        self._database.unregister(name)  # what is registered hides a view of the same name
        if files := self.parquet_files(name):
            self._database.from_parquet(files, union_by_name=True).create_view(name, replace=True)
        else:
            self._database.execute(f"DROP VIEW IF EXISTS {name}")
            self._database.register(name, rows)
        self._shown[name] = list(rows.files)
