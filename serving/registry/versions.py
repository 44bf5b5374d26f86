"""Model versions and the history of champions.

Turns manifests into versions that may or may not be served, and the promotions' table into the champion. Rounds and the
command line register and approve, serving reads. Moving the pointer is registry.py's; this module deliberately can't.
"""

from typing import Any

import sqlalchemy as sa

from schemas.manifests import ModelManifest
from schemas.records import Champion, VersionRecord
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.database import values


class UnknownVersion(KeyError):
    """No such model version."""


class Versions(AuditLog):
    """Versions and champions of one model."""

    def register_version(self, manifest: ModelManifest, digest: str, *, servable: bool) -> None:
        """Record a version. Again with the same digest is a no-op, except that it may become servable.

        Raises:
            ValueError: the manifest is another model's, or the version exists with another digest.

        """
        if manifest.model_name != self.model_name:
            raise ValueError(f"version {manifest.model_version} is of {manifest.model_name}, not of {self.model_name}")
        with self._write() as connection:
            found = self._find(connection, manifest.model_version)
            if found is None:
                connection.execute(t.versions.insert().values(self._row(connection, manifest, digest, servable)))
            elif found.digest != digest:
                raise ValueError(f"version {manifest.model_version} exists with another digest: {found.digest}")
            elif servable:
                self._update(connection, manifest.model_version, servable=True)

    def mark_servable(self, model_version: str, *, approved_by: str | None = None) -> None:
        """Allow a version to be promoted: its gates passed, or the person `approved_by` says so (audited).

        Raises:
            UnknownVersion: no such version.

        """
        with self._write() as connection:
            self._version(connection, model_version)
            if approved_by is None:
                self._update(connection, model_version, servable=True)
            else:
                self._update(connection, model_version, servable=True, approved_by=approved_by)
                self._audit(connection, approved_by, "approve", {"version": model_version})

    def version(self, model_version: str) -> VersionRecord:
        """One version. Raises UnknownVersion."""
        with self._read() as connection:
            return self._version(connection, model_version)

    def versions(self) -> list[VersionRecord]:
        """All versions, newest first."""
        query = sa.select(t.versions).where(self._mine(t.versions)).order_by(t.versions.c.sequence.desc())
        with self._read() as connection:
            return [VersionRecord.model_validate(values(row)) for row in connection.execute(query)]

    def champion(self) -> Champion | None:
        """The version that should be live, or None before the first promotion."""
        with self._read() as connection:
            return self._champion(connection)

    def promotions(self) -> list[Champion]:
        """Every champion there was, newest first."""
        with self._read() as connection:
            return [Champion.model_validate(values(row)) for row in connection.execute(self._history())]

    def _history(self) -> sa.Select[Any]:
        return sa.select(t.promotions).where(self._mine(t.promotions)).order_by(t.promotions.c.generation.desc())

    def _champion(self, connection: sa.Connection) -> Champion | None:
        row = connection.execute(self._history().limit(1)).first()
        return Champion.model_validate(values(row)) if row else None

    def _promoted_by(self, connection: sa.Connection, round_id: str) -> Champion | None:
        row = connection.execute(self._history().where(t.promotions.c.round_id == round_id)).first()
        return Champion.model_validate(values(row)) if row else None

    def _find(self, connection: sa.Connection, model_version: str) -> VersionRecord | None:
        row = connection.execute(sa.select(t.versions).where(self._named(model_version))).first()
        return VersionRecord.model_validate(values(row)) if row else None

    def _version(self, connection: sa.Connection, model_version: str) -> VersionRecord:
        found = self._find(connection, model_version)
        if found is None:
            raise UnknownVersion(f"no version {model_version} of {self.model_name}")
        return found

    def _update(self, connection: sa.Connection, model_version: str, **fields: object) -> None:
        connection.execute(t.versions.update().where(self._named(model_version)).values(**fields))

    def _named(self, model_version: str) -> sa.ColumnElement[bool]:
        return self._mine(t.versions) & (t.versions.c.model_version == model_version)

    def _row(
        self, connection: sa.Connection, manifest: ModelManifest, digest: str, servable: bool
    ) -> dict[str, object]:
        return {
            "model_name": self.model_name,
            "model_version": manifest.model_version,
            "sequence": self._next(connection, t.versions, "sequence"),
            "digest": digest,
            "parent_version": manifest.parent_version,
            "round_id": manifest.round_id,
            "created_at": self._now(),
            "servable": servable,
        }
