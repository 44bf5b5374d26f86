"""A glance at the registry: champion, unfinished round, workers and the last cut, for `ratchet status`.

Turns a registry's URL into JSON values. A SQLite registry is read with Python's own driver, because to load SQLAlchemy takes
longer than a status may; any other, and one that cannot be read so, is asked through `Registry`. Both ways answer alike.
"""

import contextlib
import json
import sqlite3
import urllib.parse
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

WORKERS_WITHIN = timedelta(seconds=30)
_SQLITE = "sqlite:///"
_UNFINISHED = "state IN ('claimed', 'running', 'awaiting approval')"


@dataclass(frozen=True)
class Glance:
    """What the registry holds now, each as the JSON of its record."""

    champion: dict[str, Any] | None = None
    unfinished: dict[str, Any] | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)
    last_cut: dict[str, int] = field(default_factory=dict)


def glance(url: str, model_name: str) -> Glance:
    """Return a glance at the registry. Raises RegistryUnavailable."""
    if url.startswith(_SQLITE):
        with contextlib.suppress(sqlite3.Error, ValueError):
            return _of_sqlite(url.removeprefix(_SQLITE), model_name)
    return _of_registry(url, model_name)


def _of_sqlite(path: str, model_name: str) -> Glance:
    uri = f"file:{urllib.parse.quote(path)}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as database:
        database.row_factory = sqlite3.Row

        def rows(query: str, *values: object) -> list[dict[str, Any]]:
            return [dict(row) for row in database.execute(query, (model_name, *values))]

        since = (datetime.now(UTC) - WORKERS_WITHIN).isoformat(timespec="microseconds")
        champions = rows("SELECT * FROM promotions WHERE model_name = ? ORDER BY generation DESC LIMIT 1")
        unfinished = rows(f"SELECT record FROM rounds WHERE model_name = ? AND {_UNFINISHED}")  # noqa: S608
        last = rows(
            "SELECT record FROM rounds WHERE model_name = ? AND state <> 'failed' ORDER BY sequence DESC LIMIT 1"
        )
        workers = rows("SELECT * FROM heartbeats WHERE model_name = ? AND seen_at >= ? ORDER BY host, worker", since)
    return Glance(
        champion=_plain(champions[0]) if champions else None,
        unfinished=json.loads(unfinished[0]["record"]) if unfinished else None,
        workers=[_plain(worker) for worker in workers],
        last_cut=json.loads(last[0]["record"]).get("cut", {}) if last else {},
    )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as its record's JSON: without the model's name, times ending in Z."""
    return {
        name: value.replace("+00:00", "Z") if name.endswith("_at") else value
        for name, value in row.items()
        if name != "model_name"
    }


def _of_registry(url: str, model_name: str) -> Glance:
    from serving.registry import Registry

    registry = Registry(url, model_name)
    try:
        champion, unfinished = registry.champion(), registry.unfinished_round()
        return Glance(
            champion=champion.model_dump(mode="json") if champion else None,
            unfinished=unfinished.model_dump(mode="json") if unfinished else None,
            workers=[worker.model_dump(mode="json") for worker in registry.workers()],
            last_cut=registry.last_cut(),
        )
    finally:
        registry.close()
