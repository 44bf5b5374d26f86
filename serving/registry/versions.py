"""Model versions and the history of champions.

Turns manifests into versions that may or may not be served, and the promotions' table into the champion. Rounds and the
command line register and approve versions, serving reads them. `Registry.promote` decides when a champion is added.
"""

from typing import Any

import sqlalchemy as sa

from schemas.manifests import ModelManifest
from schemas.records import Champion, VersionRecord, VersionState
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.database import Database, iso, values

# What a round's state says about its candidate; a promotion sets the states of both champions itself.
STATE_OF_CANDIDATE = {
    "settling": VersionState.SETTLING,
    "awaiting approval": VersionState.AWAITING_APPROVAL,
    "rejected": VersionState.REJECTED,
    "insufficient evidence": VersionState.CANDIDATE,  # nobody has decided
    "superseded": VersionState.CANDIDATE,
}


class UnknownVersion(KeyError):
    """The registry has no such model version."""


class ChampionMoved(RuntimeError):
    """The champion is no longer the version that the candidate was gated against."""


class Versions:
    """Versions and champions of one model."""

    def __init__(self, database: Database, audit_log: AuditLog) -> None:
        self._database = database
        self._audit_log = audit_log

    def register_version(self, manifest: ModelManifest, digest: str, *, servable: bool) -> None:
        """Record a version. A second call with the same digest changes nothing, except that it may make it servable.

        Raises:
            ValueError: the manifest is another model's, or the version exists with another digest.

        """
        model_name = self._database.model_name
        if manifest.model_name != model_name:
            raise ValueError(f"version {manifest.model_version} is of {manifest.model_name}, not of {model_name}")
        with self._database.write() as connection:
            known = self._find(connection, manifest.model_version)
            if known is None:
                connection.execute(t.versions.insert().values(self._row(connection, manifest, digest, servable)))
            elif known.digest != digest:
                raise ValueError(f"version {manifest.model_version} exists with another digest: {known.digest}")
            elif servable:
                self._update(connection, manifest.model_version, servable=True)

    def mark_servable(self, model_version: str, *, approved_by: str | None = None) -> None:
        """Allow a version to be promoted: its gates passed, or the person `approved_by` approved it (audited).

        Raises:
            UnknownVersion: no such version.

        """
        with self._database.write() as connection:
            self.read_version(connection, model_version)
            if approved_by is None:
                self._update(connection, model_version, servable=True)
            else:
                self._update(connection, model_version, servable=True, approved_by=approved_by)
                self._audit_log.append(connection, approved_by, "approve", {"version": model_version})

    def version(self, model_version: str) -> VersionRecord:
        """Return one version. Raises UnknownVersion."""
        with self._database.read() as connection:
            return self.read_version(connection, model_version)

    def versions(self) -> list[VersionRecord]:
        """Return all versions, newest first."""
        query = sa.select(t.versions).where(self._database.mine(t.versions)).order_by(t.versions.c.sequence.desc())
        with self._database.read() as connection:
            return [VersionRecord.model_validate(values(row)) for row in connection.execute(query)]

    def champion(self) -> Champion | None:
        """Return the version that should be live; None before the first promotion."""
        with self._database.read() as connection:
            return self.read_champion(connection)

    def promotions(self) -> list[Champion]:
        """Return every champion so far, newest first."""
        with self._database.read() as connection:
            return [Champion.model_validate(values(row)) for row in connection.execute(self._history())]

    def read_version(self, connection: sa.Connection, model_version: str) -> VersionRecord:
        """Return one version within an open transaction. Raises UnknownVersion."""
        record = self._find(connection, model_version)
        if record is None:
            raise UnknownVersion(f"no version {model_version} of {self._database.model_name}")
        return record

    def set_state(self, connection: sa.Connection, model_version: str, state: VersionState) -> None:
        """Set a version's state within an open transaction; nothing happens if the registry does not hold it yet."""
        self._update(connection, model_version, state=state.value)

    def set_approved(self, connection: sa.Connection, version: VersionRecord, people: str) -> VersionRecord:
        """Return a version that people's approval made servable, within an open transaction."""
        self._update(connection, version.model_version, servable=True, approved_by=people)
        return version.model_copy(update={"servable": True, "approved_by": people})

    def read_champion(self, connection: sa.Connection) -> Champion | None:
        """Return the champion within an open transaction; None before the first promotion."""
        row = connection.execute(self._history().limit(1)).first()
        return Champion.model_validate(values(row)) if row else None

    def check_champion(self, connection: sa.Connection, expected: str | None) -> int:
        """Return the generation of the champion `expected`, 0 before the first. Raises ChampionMoved."""
        champion = self.read_champion(connection)
        current = champion.model_version if champion else None
        if current != expected:
            raise ChampionMoved(f"the champion is {current}, not {expected}")
        return champion.generation if champion else 0

    def promoted_by(self, connection: sa.Connection, round_id: str) -> Champion | None:
        """Return the champion that a round promoted; None if it promoted none."""
        row = connection.execute(self._history().where(t.promotions.c.round_id == round_id)).first()
        return Champion.model_validate(values(row)) if row else None

    def add_champion(
        self, connection: sa.Connection, version: VersionRecord, generation: int, actor: str, round_id: str | None
    ) -> Champion:
        """Make a version the champion of `generation`, within an open transaction."""
        champion = Champion(
            model_version=version.model_version,
            digest=version.digest,
            generation=generation,
            promoted_at=self._database.clock(),
            round_id=round_id,
            actor=actor,
        )
        names = {"model_name": self._database.model_name, "promoted_at": iso(champion.promoted_at)}
        connection.execute(t.promotions.insert().values({**champion.model_dump(), **names}))
        return champion

    def _history(self) -> sa.Select[Any]:
        mine = self._database.mine(t.promotions)
        return sa.select(t.promotions).where(mine).order_by(t.promotions.c.generation.desc())

    def _find(self, connection: sa.Connection, model_version: str) -> VersionRecord | None:
        row = connection.execute(sa.select(t.versions).where(self._named(model_version))).first()
        return VersionRecord.model_validate(values(row)) if row else None

    def _update(self, connection: sa.Connection, model_version: str, **fields: object) -> None:
        connection.execute(t.versions.update().where(self._named(model_version)).values(**fields))

    def _named(self, model_version: str) -> sa.ColumnElement[bool]:
        return self._database.mine(t.versions) & (t.versions.c.model_version == model_version)

    def _row(
        self, connection: sa.Connection, manifest: ModelManifest, digest: str, servable: bool
    ) -> dict[str, object]:
        return {
            "model_name": self._database.model_name,
            "model_version": manifest.model_version,
            "sequence": self._database.next_number(connection, t.versions, "sequence"),
            "digest": digest,
            "parent_version": manifest.parent_version,
            "round_id": manifest.round_id,
            "created_at": self._database.now(),
            "servable": servable,
        }
