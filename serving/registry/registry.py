"""The registry: what serving, the scheduler, the consumer, rounds and the command line agree on, in one database.

Turns method calls into short transactions on SQLite or Postgres. Each process holds one `Registry`. Its nouns live in
the registry_*.py beside it; here they are one object, and the champion's pointer moves. It deliberately knows nothing of
training, Kafka or HTTP.
"""

import sqlalchemy as sa

from schemas.records import Champion, RoundRecord, RoundState, VersionRecord
from serving.registry import tables as t
from serving.registry.database import RegistryUnavailable, UnknownSchema, iso
from serving.registry.exclusions import Exclusions
from serving.registry.labels import BadLabel, Taxonomy
from serving.registry.leases import StaleLease
from serving.registry.rounds import RoundOver, Rounds, UnknownRound
from serving.registry.versions import UnknownVersion

__all__ = [
    "BadLabel",
    "ChampionMoved",
    "NotServable",
    "Registry",
    "RegistryUnavailable",
    "RoundOver",
    "StaleLease",
    "UnknownRound",
    "UnknownSchema",
    "UnknownVersion",
]


class ChampionMoved(RuntimeError):
    """The champion is no longer the version that the candidate was gated against."""


class NotServable(ValueError):
    """The version's gates did not pass, and no named person approved it."""


class Registry(Rounds, Taxonomy, Exclusions):
    """One model's registry. Every method is a transaction of its own, and raises RegistryUnavailable when it can't be."""

    def promote(
        self, model_version: str, *, expected: str | None, token: int | None, actor: str, round_id: str | None = None
    ) -> Champion:
        """Move the champion's pointer from `expected` to `model_version`; round and audit log follow in one transaction.

        A round promotes once: the same version again, even after a rollback, returns the champion that it made then.

        Args:
            model_version: who shall be champion.
            expected: the version that the candidate was gated against; None: there is no champion yet.
            token: fencing token of the scheduler's lease; None when a person acts.
            actor: who is answerable, for the audit log.
            round_id: the round whose candidate it is; it becomes PROMOTED.

        Raises:
            UnknownVersion, UnknownRound: no such version or round.
            ChampionMoved: the champion is not `expected`, or the round was gated against another.
            StaleLease: `token` is not the newest of the scheduler's lease.
            NotServable: its gates did not pass and nobody approved it.
            RoundOver: the round failed or was skipped, was rejected and not overruled, has not started, or has promoted
                another version.

        """
        with self._write() as connection:
            if round_id and (done := self._promoted_by(connection, round_id)):
                if done.model_version != model_version:
                    raise RoundOver(f"round {round_id} has promoted {done.model_version}")
                return done
            generation = self._check_champion(connection, expected)
            self._check_token(connection, token)
            version = self._version(connection, model_version)
            if not version.servable:
                raise NotServable(f"{model_version} has not passed its gates and nobody approved it")
            if round_id:
                self._conclude(connection, round_id, version, expected, generation + 1)
            champion = self._crown(connection, version, generation + 1, actor, round_id)
            move = {"from": expected, "to": model_version, "generation": champion.generation, "round": round_id}
            self._audit(connection, actor, "promote", move)
            return champion

    def _check_champion(self, connection: sa.Connection, expected: str | None) -> int:
        """The generation of the champion `expected`, 0 if there is none yet. Raises ChampionMoved."""
        champion = self._champion(connection)
        found = champion.model_version if champion else None
        if found != expected:
            raise ChampionMoved(f"the champion is {found}, not {expected}")
        return champion.generation if champion else 0

    def _conclude(
        self,
        connection: sa.Connection,
        round_id: str,
        version: VersionRecord,
        expected: str | None,
        generation: int,
    ) -> RoundRecord:
        record = self._round(connection, round_id)
        self._check_outcome(record, version)
        if record.champion_version != expected:
            raise ChampionMoved(f"round {round_id} was gated against {record.champion_version}, not {expected}")
        return self._save(
            connection,
            record,
            state=RoundState.PROMOTED,
            candidate_version=version.model_version,
            detail=f"promoted {version.model_version} as generation {generation}",
            finished_at=self._clock(),
        )

    def _crown(
        self, connection: sa.Connection, version: VersionRecord, generation: int, actor: str, round_id: str | None
    ) -> Champion:
        champion = Champion(
            model_version=version.model_version,
            digest=version.digest,
            generation=generation,
            promoted_at=self._clock(),
            round_id=round_id,
            actor=actor,
        )
        row = {**champion.model_dump(), "model_name": self.model_name, "promoted_at": iso(champion.promoted_at)}
        connection.execute(t.promotions.insert().values(row))
        return champion
