"""The audit log: who did what, in a chain of hashes.

Turns (actor, action, detail) into rows that hold the hash of the row before, and a log into a list of its faults.
The other nouns append a row within their own transactions.

Each hash covers the row and its predecessor's hash, so a change shows unless every later row is rewritten too. Against that,
and against a truncated log, safeguards/marker.py keeps the last row's number and hash beside the artefacts.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from schemas.records import AuditRow
from serving.registry import tables as t
from serving.registry.database import Database, values

FIRST = "0" * 64


class AuditLog:
    """Append to and check one model's audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def audit(self, actor: str, action: str, detail: Mapping[str, object]) -> None:
        """Append a row in a transaction of its own. `detail` is JSON; a value that JSON lacks is kept as text."""
        with self._database.write() as connection:
            self.append(connection, actor, action, detail)

    def append(self, connection: sa.Connection, actor: str, action: str, detail: Mapping[str, object]) -> None:
        """Append a row within an open transaction."""
        newest = sa.select(t.audit.c.sequence, t.audit.c.hash).where(self._mine)
        last = connection.execute(newest.order_by(t.audit.c.sequence.desc()).limit(1)).first()
        row: dict[str, str | int] = {
            "model_name": self._database.model_name,
            "sequence": last.sequence + 1 if last else 1,
            "at": self._database.now(),
            "actor": actor,
            "action": action,
            "detail": json.dumps(detail, sort_keys=True, default=str),
            "previous": last.hash if last else FIRST,
        }
        connection.execute(t.audit.insert().values(**row, hash=_hash(row)))

    def audit_export(self) -> list[dict[str, str | int]]:
        """Return the whole log as stored, oldest first. `hash` covers every other value, as JSON with sorted keys."""
        return self._stored()

    def audit_rows(self) -> list[AuditRow]:
        """Return the whole log, oldest first."""
        return [AuditRow.model_validate(row | {"detail": json.loads(row["detail"])}) for row in self._stored()]

    def verify_audit(self) -> list[str]:
        """Return the chain's faults, a sentence with the row's number for each; empty when it is intact."""
        return _faults(self._database.model_name, self._stored()) + self._unrecorded()

    def audit_head(self) -> tuple[int, str | None, str | None]:
        """Return the last row's number and hash, and the first row's hash, which identifies the registry."""
        query = sa.select(t.audit.c.sequence, t.audit.c.hash).where(self._mine).order_by(t.audit.c.sequence)
        with self._database.read() as connection:
            first = connection.execute(query.limit(1)).first()
            last = connection.execute(query.order_by(None).order_by(t.audit.c.sequence.desc()).limit(1)).first()
        return (int(last.sequence), last.hash, first.hash) if first and last else (0, None, None)

    def audit_hash(self, sequence: int) -> str | None:
        """Return the hash of a row, None if there is no such row."""
        query = sa.select(t.audit.c.hash).where(self._mine & (t.audit.c.sequence == sequence))
        with self._database.read() as connection:
            stored = connection.execute(query).scalar()
            return None if stored is None else str(stored)

    def _unrecorded(self) -> list[str]:
        """Return a sentence if the registry holds more promotions than its log: an emptied log has no fault in its chain."""
        promotions = sa.select(sa.func.count()).select_from(t.promotions).where(self._database.mine(t.promotions))
        recorded = sa.select(sa.func.count()).select_from(t.audit).where(self._mine, t.audit.c.action == "promote")
        with self._database.read() as connection:
            promoted, logged = connection.execute(promotions).scalar() or 0, connection.execute(recorded).scalar() or 0
        fault = f"audit log of {self._database.model_name}: it records {logged} of {promoted} promotions"
        return [fault] if promoted > logged else []

    def _stored(self) -> list[dict[str, Any]]:
        query = sa.select(t.audit).where(self._mine).order_by(t.audit.c.sequence)
        with self._database.read() as connection:
            return [values(row) for row in connection.execute(query)]

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        return self._database.mine(t.audit)


def _hash(row: Mapping[str, str | int]) -> str:
    """Return the SHA-256 of every column but the hash itself, as JSON with sorted keys."""
    covered = {name: value for name, value in row.items() if name != "hash"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _faults(model_name: str, rows: Iterable[Mapping[str, str | int]]) -> list[str]:
    number, link, trusted, faults = 0, FIRST, True, []
    for row in rows:
        sequence, intact = int(row["sequence"]), row["hash"] == _hash(row)
        if sequence > number + 1:
            faults.append(_missing(number + 1, sequence - 1))
        elif intact and trusted and row["previous"] != link:
            # This row still holds the hash that its predecessor had when this row was appended.
            faults.append(f"row {number or 1} was rewritten together with its hash: row {sequence} names another")
        if not intact:
            faults.append(f"row {sequence} was changed")
        number, link, trusted = sequence, str(row["hash"]), intact
    return [f"audit log of {model_name}: {fault}" for fault in faults]


def _missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"
