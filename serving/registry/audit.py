"""The audit log: who did what, in a chain of hashes.

Turns (actor, action, detail) into rows that name the hash of the row before, and a log into what is wrong with it.
`Registry` appends within its own transactions. It deliberately does not decide what deserves a row.

Each hash covers the row and its predecessor's hash, so a change shows unless every later row is rewritten too. Against that,
and against a cut-off tail, registry/marker.py keeps the last row's number and hash beside the artefacts.
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


class AuditLog(Database):
    """Append to and check one model's audit log."""

    def audit(self, actor: str, action: str, detail: Mapping[str, object]) -> None:
        """Append a row. `detail` is JSON; what JSON cannot say is kept as text."""
        with self._write() as connection:
            self._audit(connection, actor, action, detail)

    def audit_rows(self) -> list[AuditRow]:
        """The whole log, oldest first."""
        return [AuditRow.model_validate(row | {"detail": json.loads(row["detail"])}) for row in self._stored()]

    def verify_audit(self) -> list[str]:
        """What is wrong with the chain, a sentence for each row, naming it by its number; empty when it is whole."""
        return _faults(self.model_name, self._stored()) + self._unrecorded()

    def audit_head(self) -> tuple[int, str | None, str | None]:
        """Return the last row's number and hash, and the hash of the first, which no other registry's has."""
        query = sa.select(t.audit.c.sequence, t.audit.c.hash).where(self._mine(t.audit)).order_by(t.audit.c.sequence)
        with self._read() as connection:
            first = connection.execute(query.limit(1)).first()
            last = connection.execute(query.order_by(None).order_by(t.audit.c.sequence.desc()).limit(1)).first()
        return (int(last.sequence), last.hash, first.hash) if first and last else (0, None, None)

    def audit_hash(self, sequence: int) -> str | None:
        """Return the hash of a row, None if there is no such row."""
        query = sa.select(t.audit.c.hash).where(self._mine(t.audit) & (t.audit.c.sequence == sequence))
        with self._read() as connection:
            found = connection.execute(query).scalar()
            return None if found is None else str(found)

    def _unrecorded(self) -> list[str]:
        """A sentence if the registry holds more promotions than its log: an emptied log is whole in itself."""
        promotions = sa.select(sa.func.count()).select_from(t.promotions).where(self._mine(t.promotions))
        recorded = (
            sa.select(sa.func.count()).select_from(t.audit).where(self._mine(t.audit), t.audit.c.action == "promote")
        )
        with self._read() as connection:
            made, logged = connection.execute(promotions).scalar() or 0, connection.execute(recorded).scalar() or 0
        return [f"audit log of {self.model_name}: {made} promotions, and rows of {logged}"] if made > logged else []

    def _stored(self) -> list[dict[str, Any]]:
        query = sa.select(t.audit).where(self._mine(t.audit)).order_by(t.audit.c.sequence)
        with self._read() as connection:
            return [values(row) for row in connection.execute(query)]

    def _audit(self, connection: sa.Connection, actor: str, action: str, detail: Mapping[str, object]) -> None:
        newest = sa.select(t.audit.c.sequence, t.audit.c.hash).where(self._mine(t.audit))
        last = connection.execute(newest.order_by(t.audit.c.sequence.desc()).limit(1)).first()
        row: dict[str, str | int] = {
            "model_name": self.model_name,
            "sequence": last.sequence + 1 if last else 1,
            "at": self._now(),
            "actor": actor,
            "action": action,
            "detail": json.dumps(detail, sort_keys=True, default=str),
            "previous": last.hash if last else FIRST,
        }
        connection.execute(t.audit.insert().values(**row, hash=_hash(row)))


def _hash(row: Mapping[str, str | int]) -> str:
    """SHA-256 over every column but the hash itself, in one unambiguous spelling."""
    covered = {name: value for name, value in row.items() if name != "hash"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _faults(model_name: str, rows: Iterable[Mapping[str, str | int]]) -> list[str]:
    number, link, trusted, faults = 0, FIRST, True, []
    for row in rows:
        sequence, intact = int(row["sequence"]), row["hash"] == _hash(row)
        if sequence > number + 1:
            faults.append(_missing(number + 1, sequence - 1))
        elif intact and trusted and row["previous"] != link:
            # This row still names the hash that its predecessor had when this row was written.
            faults.append(f"row {number or 1} was rewritten together with its hash: row {sequence} names another")
        if not intact:
            faults.append(f"row {sequence} was changed")
        number, link, trusted = sequence, str(row["hash"]), intact
    return [f"audit log of {model_name}: {fault}" for fault in faults]


def _missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"
