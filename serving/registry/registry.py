"""The registry: the state that serving, the scheduler, the consumer, rounds and the command line share, in one database.

Turns method calls into short transactions on SQLite or Postgres. Each process holds one `Registry`. Each noun is a class
of its own, constructed with one `Database`; `promote` alone spans several nouns. Training, Kafka and HTTP are elsewhere.
"""

import time
from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa

from schemas.events import utc_now
from schemas.records import Champion
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.clocks import seconds_ahead
from serving.registry.database import Database, RegistryUnavailable, UnknownSchema
from serving.registry.exclusions import Exclusions
from serving.registry.labels import BadLabel, Labels
from serving.registry.leases import Leases, StaleLease
from serving.registry.positions import Positions
from serving.registry.rounds import RoundOver, Rounds, UnknownRound
from serving.registry.split_ledger import SplitLedger
from serving.registry.versions import ChampionMoved, UnknownVersion, Versions
from serving.registry.workers import Workers

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

STORED_TIMES = (
    t.leases.c.expires_at,
    t.heartbeats.c.seen_at,
    t.promotions.c.promoted_at,
    t.versions.c.created_at,
    t.audit.c.at,
)


class NotServable(ValueError):
    """The version's gates did not pass, and no named person approved it."""


class Registry:
    """One model's registry. Every method is a transaction of its own, and may raise RegistryUnavailable.

    The nouns' methods are its attributes: their signatures and docstrings are in the module of the noun. Arguments and
    errors of the constructor are those of `Database`; `monotonic` returns seconds that never go back.
    """

    def __init__(
        self,
        url: str,
        model_name: str,
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model_name = model_name
        self.database = database = Database(url, model_name, clock=clock)
        self.close, self.migrate = database.close, database.migrate

        self._audit_log = audit_log = AuditLog(database)
        self.audit, self.audit_rows, self.verify_audit = audit_log.audit, audit_log.audit_rows, audit_log.verify_audit
        self.audit_head, self.audit_hash = audit_log.audit_head, audit_log.audit_hash

        self._versions = versions = Versions(database, audit_log)
        self.register_version, self.mark_servable = versions.register_version, versions.mark_servable
        self.version, self.versions = versions.version, versions.versions
        self.champion, self.promotions = versions.champion, versions.promotions

        self._leases = leases = Leases(database, monotonic)
        self.acquire_lease, self.release_lease = leases.acquire_lease, leases.release_lease

        self._rounds = rounds = Rounds(database, versions, leases)
        self.claim_round, self.start_round, self.interrupt_round = (
            rounds.claim_round,
            rounds.start_round,
            rounds.interrupt_round,
        )
        self.update_round, self.finish_round = rounds.update_round, rounds.finish_round
        self.round, self.rounds, self.unfinished_round = rounds.round, rounds.rounds, rounds.unfinished_round
        self.looks_since_promotion, self.last_cut = rounds.looks_since_promotion, rounds.last_cut

        labels = Labels(database, audit_log)
        self.labels, self.label_map, self.active_labels = labels.labels, labels.label_map, labels.active_labels
        self.set_labels, self.take_up_labels = labels.set_labels, labels.take_up_labels
        self.retire_label, self.rename_label = labels.retire_label, labels.rename_label
        self.merge_labels = labels.merge_labels

        split_ledger = SplitLedger(database)
        self.sides, self.record_sides = split_ledger.sides, split_ledger.record_sides

        workers = Workers(database)
        self.heartbeat, self.workers = workers.heartbeat, workers.workers

        positions = Positions(database)
        self.record_positions, self.correct_position = positions.record_positions, positions.correct_position
        self.positions = positions.positions

        exclusions = Exclusions(database, audit_log)
        self.excluded, self.exclude, self.include = exclusions.excluded, exclusions.exclude, exclusions.include

    def promote(
        self, model_version: str, *, expected: str | None, token: int | None, actor: str, round_id: str | None = None
    ) -> Champion:
        """Move the champion pointer from `expected` to `model_version`, end the round and append to the audit log, at once.

        A round promotes once: a second call for the same version, even after a rollback, returns the champion of the first.

        Args:
            model_version: the version that becomes champion.
            expected: the version that the candidate was gated against; None: there is no champion yet.
            token: fencing token of the scheduler's lease; None when a person acts.
            actor: the person or process responsible, for the audit log.
            round_id: the round whose candidate it is; it becomes PROMOTED.

        Raises:
            UnknownVersion, UnknownRound: no such version or round.
            ChampionMoved: the champion is not `expected`, or the round was gated against another.
            StaleLease: `token` is not the newest of the scheduler's lease.
            NotServable: its gates did not pass and nobody approved it.
            RoundOver: the round failed or was skipped, was rejected and not overruled, has not started, or has promoted
                another version.
            ValueError: the round's candidate is another version.

        """
        with self.database.write() as connection:
            if round_id and (earlier := self._versions.promoted_by(connection, round_id)):
                if earlier.model_version != model_version:
                    raise RoundOver(f"round {round_id} has promoted {earlier.model_version}")
                return earlier
            generation = self._versions.check_champion(connection, expected) + 1
            self._leases.check_token(connection, token)
            version = self._versions.read_version(connection, model_version)
            if not version.servable:
                raise NotServable(f"{model_version} has not passed its gates and nobody approved it")
            if round_id:
                self._rounds.end_promoted(connection, round_id, version, expected=expected, generation=generation)
            champion = self._versions.add_champion(connection, version, generation, actor, round_id)
            move = {"from": expected, "to": model_version, "generation": generation, "round": round_id}
            self._audit_log.append(connection, actor, "promote", move)
            return champion

    def seconds_ahead(self) -> float:
        """Return by how many seconds the newest stored time is ahead of this clock; 0 below a minute.

        More means that this clock was set back since, or that another machine's clock is ahead.
        """
        with self.database.read() as connection:
            newest = [
                connection.execute(sa.select(sa.func.max(time)).where(self.database.mine(time.table))).scalar()
                for time in STORED_TIMES
            ]
        return seconds_ahead(newest, self.database.clock())
