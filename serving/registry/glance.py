"""A quick read of the registry: champion, unfinished round, workers, cut and notes of ingestion, for `ratchet status`.

Turns a registry's URL into JSON values. It reads SQLite with Python's own driver, because loading SQLAlchemy takes longer
than `ratchet status` may. Postgres, or a SQLite file that fails to open, is read through `Registry`. Both return the same.
"""

import contextlib
import json
import sqlite3
import urllib.parse
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from serving.registry.clocks import seconds_ahead

WORKERS_WITHIN = timedelta(seconds=30)
_SQLITE = "sqlite:///"
_TIMES = {
    "leases": "expires_at",
    "heartbeats": "seen_at",
    "promotions": "promoted_at",
    "versions": "created_at",
    "audit": "at",
}
_UNFINISHED = "state IN ('claimed', 'running', 'awaiting approval')"


@dataclass(frozen=True)
class Glance:
    """The registry's present state, each part as the JSON of its record."""

    champion: dict[str, Any] | None = None
    unfinished: dict[str, Any] | None = None
    settling: dict[str, Any] | None = None  # the round that waits for labels
    workers: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None  # the newest round, whatever its state
    last_cut: dict[str, int] = field(default_factory=dict)
    ingestion: list[dict[str, Any]] = field(default_factory=list)
    ahead_s: float = 0.0  # how far its newest stored time is ahead of this clock


def glance(url: str, model_name: str) -> Glance:
    """Return the registry's present state. Raises RegistryUnavailable."""
    if url.startswith(_SQLITE):
        with contextlib.suppress(sqlite3.Error, ValueError):
            return read_sqlite(url.removeprefix(_SQLITE), model_name)
    return read_registry(url, model_name)


def read_sqlite(path: str, model_name: str) -> Glance:
    """Return the state in a SQLite file. Raises sqlite3.Error, ValueError."""
    file = urllib.parse.unquote(path.partition("?")[0])
    uri = f"file:{urllib.parse.quote(file)}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as database:
        database.row_factory = sqlite3.Row

        def rows(query: str, *values: object) -> list[dict[str, Any]]:
            return [dict(row) for row in database.execute(query, (model_name, *values))]

        now = datetime.now(UTC)
        since, until = ((now + sign * WORKERS_WITHIN).isoformat(timespec="microseconds") for sign in (-1, 1))
        champions = rows("SELECT * FROM promotions WHERE model_name = ? ORDER BY generation DESC LIMIT 1")
        unfinished = rows(f"SELECT record FROM rounds WHERE model_name = ? AND {_UNFINISHED}")  # noqa: S608
        newest = rows("SELECT record FROM rounds WHERE model_name = ? ORDER BY sequence DESC LIMIT 1")
        settling = rows("SELECT record FROM rounds WHERE model_name = ? AND state = 'settling'")
        last = rows(
            "SELECT record FROM rounds WHERE model_name = ? AND state <> 'failed' ORDER BY sequence DESC LIMIT 1"
        )
        near = "SELECT * FROM heartbeats WHERE model_name = ? AND seen_at BETWEEN ? AND ? ORDER BY host, worker"
        workers = rows(near, since, until)
        # A registry that `up` has not migrated yet has no such table.
        noted = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'ingestion'").fetchone()
        notes = rows("SELECT * FROM ingestion WHERE model_name = ? ORDER BY kind, subject") if noted else []
        times = [
            rows(f"SELECT max({column}) AS newest FROM {table} WHERE model_name = ?")[0]["newest"]  # noqa: S608
            for table, column in _TIMES.items()
        ]
    return Glance(
        champion=_plain(champions[0]) if champions else None,
        unfinished=json.loads(unfinished[0]["record"]) if unfinished else None,
        settling=json.loads(settling[0]["record"]) if settling else None,
        workers=[_plain(worker) for worker in workers],
        last=json.loads(newest[0]["record"]) if newest else None,
        last_cut=json.loads(last[0]["record"]).get("cut", {}) if last else {},
        ingestion=[_plain(note) for note in notes],
        ahead_s=seconds_ahead(times, now),
    )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as its record's JSON: without the model's name, times ending in Z."""
    return {
        name: value.replace("+00:00", "Z") if name.endswith("_at") else value
        for name, value in row.items()
        if name != "model_name"
    }


def read_registry(url: str, model_name: str) -> Glance:
    """Return the state as `Registry` reads it. Raises RegistryUnavailable."""
    from serving.registry.registry import Registry, RegistryUnavailable

    registry = Registry(url, model_name)
    notes: list[dict[str, Any]] = []
    try:
        with contextlib.suppress(RegistryUnavailable):  # `up` has not migrated it yet
            notes = [note.model_dump(mode="json") for note in registry.ingestion()]
        champion, unfinished, rounds = registry.champion(), registry.unfinished_round(), registry.rounds()
        settling = registry.settling_round()
        return Glance(
            champion=champion.model_dump(mode="json") if champion else None,
            unfinished=unfinished.model_dump(mode="json") if unfinished else None,
            settling=settling.model_dump(mode="json") if settling else None,
            workers=[worker.model_dump(mode="json") for worker in registry.workers()],
            last=rounds[0].model_dump(mode="json") if rounds else None,
            last_cut=registry.last_cut(),
            ingestion=notes,
            ahead_s=registry.seconds_ahead(),
        )
    finally:
        registry.close()
