"""The registry: the state that serving, the scheduler, the consumer, rounds and the command line share, in one database.

Turns method calls into short transactions on SQLite or Postgres. Each process holds one `Registry`. Each noun is a class
of its own, constructed with one `Database`; decisions.py spans several. Training, Kafka and HTTP are elsewhere.
"""

import time
from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa

from schemas.events import utc_now
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.clocks import seconds_ahead
from serving.registry.database import BUSY_SECONDS, Database, RegistryUnavailable, UnknownSchema
from serving.registry.decisions import (
    Approval,
    DecidedAlready,
    Decisions,
    NeedsOverrule,
    NeverServed,
    NoReason,
    NotServable,
)
from serving.registry.exclusions import Exclusions
from serving.registry.ingestion import IngestionNotes
from serving.registry.labelling.items import QueueItems
from serving.registry.labelling.queue import Queue
from serving.registry.labels import BadLabel, Labels
from serving.registry.leases import Leases, StaleLease
from serving.registry.looks import Looks
from serving.registry.people import People, PersonExists, UnknownPerson
from serving.registry.positions import Positions
from serving.registry.review.deliveries import Deliveries
from serving.registry.review.history import History
from serving.registry.review.trust import Trust
from serving.registry.rounds import RoundOver, Rounds, UnknownRound
from serving.registry.split_ledger import SplitLedger
from serving.registry.versions import ChampionMoved, UnknownVersion, Versions
from serving.registry.workers import Workers

__all__ = [
    "Approval",
    "BadLabel",
    "ChampionMoved",
    "DecidedAlready",
    "NeedsOverrule",
    "NeverServed",
    "NoReason",
    "NotServable",
    "PersonExists",
    "Registry",
    "RegistryUnavailable",
    "RoundOver",
    "StaleLease",
    "UnknownPerson",
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
        busy_s: float = BUSY_SECONDS,
    ) -> None:
        self.model_name = model_name
        self.database = database = Database(url, model_name, clock=clock, busy_s=busy_s)
        self.close, self.exists = database.close, database.exists
        self.migrate, self.upgrade = database.migrate, database.upgrade
        audit_log = AuditLog(database)
        self.audit, self.audit_rows, self.verify_audit = audit_log.audit, audit_log.audit_rows, audit_log.verify_audit
        self.audit_export = audit_log.audit_export
        self.audit_head, self.audit_hash = audit_log.audit_head, audit_log.audit_hash
        versions = Versions(database, audit_log)
        self.register_version, self.mark_servable = versions.register_version, versions.mark_servable
        self.version, self.versions = versions.version, versions.versions
        self.champion, self.promotions = versions.champion, versions.promotions
        self.people, leases = People(database, audit_log), Leases(database, monotonic)
        self.acquire_lease, self.release_lease = leases.acquire_lease, leases.release_lease
        rounds = Rounds(database, versions, leases)
        self.claim_round, self.start_round = rounds.claim_round, rounds.start_round
        self.interrupt_round, self.update_round = rounds.interrupt_round, rounds.update_round
        self.finish_round = rounds.finish_round
        self.round, self.rounds, self.unfinished_round = rounds.round, rounds.rounds, rounds.unfinished_round
        self.last_cut, self.settling_round = rounds.last_cut, rounds.settling_round
        self.begin_settling, self.update_settling = rounds.begin_settling, rounds.update_settling

        decisions = Decisions(database, audit_log, versions, leases, rounds)
        self.promote, self.approve, self.reject = decisions.promote, decisions.approve, decisions.reject
        self.roll_back, self.rollback_target = decisions.roll_back, decisions.rollback_target
        labels = Labels(database, audit_log)
        self.labels, self.label_map, self.active_labels = labels.labels, labels.label_map, labels.active_labels
        self.set_labels, self.take_up_labels = labels.set_labels, labels.take_up_labels
        self.retire_label, self.rename_label = labels.retire_label, labels.rename_label
        self.merge_labels = labels.merge_labels
        self.queue, self.queue_items = Queue(database, rounds, labels), QueueItems(database)
        split_ledger = SplitLedger(database)
        self.sides, self.record_sides = split_ledger.sides, split_ledger.record_sides
        self.history, self.deliveries = History(database), Deliveries(database)
        self.trust = Trust(database, audit_log)
        workers = Workers(database)
        self.heartbeat, self.workers = workers.heartbeat, workers.workers
        positions = Positions(database)
        self.record_positions, self.correct_position = positions.record_positions, positions.correct_position
        self.positions = positions.positions

        ingestion = IngestionNotes(database)
        self.count_ingestion, self.show_ingestion = ingestion.count_ingestion, ingestion.show_ingestion
        self.ingestion, self.project_id = ingestion.ingestion, ingestion.project_id
        self.signed_since = ingestion.signed_since

        looks = Looks(database)
        self.open_look, self.close_look, self.looks = looks.open_look, looks.close_look, looks.looks

        exclusions = Exclusions(database, audit_log)
        self.excluded, self.exclude, self.include = exclusions.excluded, exclusions.exclude, exclusions.include

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
