"""The registry: versions, champion, rounds, leases, labels, split ledger and audit log, in one database.

Turns method calls into short transactions on SQLite or Postgres. Serving, the scheduler, the consumer, rounds and the
command line each hold one `Registry`; this module and its tables are the only SQL. It deliberately knows nothing of
training, Kafka or HTTP.

Writes are serialised: SQLite by BEGIN IMMEDIATE, Postgres by a transaction-scoped advisory lock per model. They are
few and short, and what they decide (who is champion, who runs the round) must have one order.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from schemas.artifacts import (
    FINAL_STATES,
    Champion,
    Label,
    ModelManifest,
    RoundRecord,
    RoundState,
    VersionRecord,
    WorkerHeartbeat,
)
from schemas.events import new_id, utc_now
from serving import registry_tables as t


class RegistryUnavailable(ConnectionError):
    """The database cannot be reached or refused a statement."""


class UnknownVersion(KeyError):
    """No such model version."""


class UnknownRound(KeyError):
    """No such round."""


class ChampionMoved(RuntimeError):
    """The champion is no longer the version that the candidate was gated against."""


class StaleLease(RuntimeError):
    """The caller's fencing token is not the lease's any more: somebody else took over."""


class NotServable(ValueError):
    """The version's gates did not pass, and no named person approved it."""


class RoundOver(RuntimeError):
    """The round has already ended in another state."""


class Registry:
    """One model's view of the registry. Thread-safe; `clock` returns aware UTC."""

    def __init__(self, url: str, model_name: str, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.model_name = model_name
        self._clock = clock
        parsed = sa.make_url(url)
        self._sqlite = parsed.get_backend_name() == "sqlite"
        if self._sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        connect_args: dict[str, object] = {"timeout": 15} if self._sqlite else {"connect_timeout": 5}
        self._engine = sa.create_engine(url, connect_args=connect_args, pool_pre_ping=not self._sqlite)
        if self._sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Bring the schema to the newest version. Several processes may do so at once.

        Raises:
            RegistryUnavailable: the database cannot be reached.

        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    # --- versions ---------------------------------------------------------------------------------------------------

    def register_version(self, manifest: ModelManifest, digest: str, *, servable: bool) -> None:
        """Record a version. The same version with the same digest again is a no-op; with another, a ValueError."""
        with self._write() as connection:
            found = connection.execute(
                sa.select(t.versions.c.digest).where(t.versions.c.model_version == manifest.model_version)
            ).scalar()
            if found is not None and found != digest:
                raise ValueError(f"version {manifest.model_version} exists with another content: {found}")
            if found is None:
                connection.execute(
                    t.versions.insert().values(
                        model_version=manifest.model_version,
                        model_name=self.model_name,
                        digest=digest,
                        parent_version=manifest.parent_version,
                        round_id=manifest.round_id,
                        created_at=self._now(),
                        servable=servable,
                    )
                )

    def mark_servable(self, model_version: str, *, approved_by: str | None = None) -> None:
        """Allow a version to be promoted: its gates passed, or `approved_by` says so. Raises UnknownVersion."""
        with self._write() as connection:
            self._version(connection, model_version)
            connection.execute(
                t.versions.update()
                .where(t.versions.c.model_version == model_version)
                .values(servable=True, approved_by=approved_by)
            )

    def version(self, model_version: str) -> VersionRecord:
        """One version. Raises UnknownVersion."""
        with self._read() as connection:
            return self._version(connection, model_version)

    def versions(self) -> list[VersionRecord]:
        """All versions, newest first."""
        query = sa.select(t.versions).where(t.versions.c.model_name == self.model_name)
        with self._read() as connection:
            rows = connection.execute(query.order_by(t.versions.c.created_at.desc()))
            return [VersionRecord.model_validate(dict(row._mapping)) for row in rows]

    def _version(self, connection: sa.Connection, model_version: str) -> VersionRecord:
        mine = (t.versions.c.model_version == model_version) & (t.versions.c.model_name == self.model_name)
        row = connection.execute(sa.select(t.versions).where(mine)).first()
        if row is None:
            raise UnknownVersion(model_version)
        return VersionRecord.model_validate(dict(row._mapping))

    # --- champion ---------------------------------------------------------------------------------------------------

    def champion(self) -> Champion | None:
        """The version that should be live, or None before the first promotion."""
        with self._read() as connection:
            return self._champion(connection)

    def promotions(self) -> list[Champion]:
        """Every champion there was, newest first."""
        with self._read() as connection:
            return [Champion.model_validate(dict(row._mapping)) for row in connection.execute(self._history())]

    def promote(
        self, model_version: str, *, expected: str | None, token: int | None, actor: str, round_id: str | None = None
    ) -> Champion:
        """Move the champion pointer from `expected` to `model_version`, in one transaction with round and audit log.

        The same round promoting the same version again returns the champion that it made.

        Raises:
            ChampionMoved: the champion is not `expected`.
            StaleLease: `token` is given and is not the scheduler lease's.
            NotServable: gates not passed and nobody approved.
            UnknownVersion: no such version.

        """
        with self._write() as connection:
            current = self._champion(connection)
            if current and round_id and (current.round_id, current.model_version) == (round_id, model_version):
                return current
            found = current.model_version if current else None
            if found != expected:
                raise ChampionMoved(f"the champion is {found}, not {expected}")
            self._check_token(connection, token)
            version = self._version(connection, model_version)
            if not version.servable:
                raise NotServable(f"{model_version} has not passed its gates and nobody approved it")
            champion = Champion(
                model_version=model_version,
                digest=version.digest,
                generation=(current.generation if current else 0) + 1,
                promoted_at=self._clock(),
                round_id=round_id,
                actor=actor,
            )
            row = {**champion.model_dump(), "promoted_at": _iso(champion.promoted_at), "model_name": self.model_name}
            connection.execute(t.promotions.insert().values(row))
            if round_id:
                detail = f"promoted {model_version} as generation {champion.generation}"
                self._finish(connection, round_id, RoundState.PROMOTED, detail)
            self._audit(
                connection,
                actor,
                "promote",
                {"from": found, "to": model_version, "generation": champion.generation, "round": round_id},
            )
            return champion

    def _history(self) -> sa.Select[Any]:
        mine = t.promotions.c.model_name == self.model_name
        return sa.select(t.promotions).where(mine).order_by(t.promotions.c.generation.desc())

    def _champion(self, connection: sa.Connection) -> Champion | None:
        row = connection.execute(self._history().limit(1)).first()
        return Champion.model_validate(dict(row._mapping)) if row else None

    # --- rounds -----------------------------------------------------------------------------------------------------

    def claim_round(self, *, reason: str, cut: dict[str, int], token: int | None) -> RoundRecord | None:
        """A fresh round, or None while another is unfinished. Raises StaleLease."""
        with self._write() as connection:
            self._check_token(connection, token)
            if self._unfinished(connection):
                return None
            record = RoundRecord(
                round_id=new_id(),
                model_name=self.model_name,
                state=RoundState.CLAIMED,
                reason=reason,
                cut=cut,
                created_at=self._clock(),
            )
            connection.execute(
                t.rounds.insert().values(
                    round_id=record.round_id,
                    model_name=self.model_name,
                    state=record.state.value,
                    created_at=_iso(record.created_at),
                    record=record.model_dump_json(),
                )
            )
            return record

    def unfinished_round(self) -> RoundRecord | None:
        """The round that is claimed, running or awaiting approval, if any."""
        with self._read() as connection:
            return self._unfinished(connection)

    def round(self, round_id: str) -> RoundRecord:
        """One round. Raises UnknownRound."""
        with self._read() as connection:
            return self._round(connection, round_id)

    def rounds(self) -> list[RoundRecord]:
        """All rounds, newest first."""
        query = sa.select(t.rounds.c.record).where(t.rounds.c.model_name == self.model_name)
        with self._read() as connection:
            found = connection.execute(query.order_by(t.rounds.c.created_at.desc())).scalars()
            return [RoundRecord.model_validate_json(text) for text in found]

    def start_round(self, round_id: str) -> RoundRecord:
        """Claimed or running -> running, one attempt more, to be gated against today's champion. Raises RoundOver."""
        with self._write() as connection:
            record = self._round(connection, round_id)
            if record.state not in (RoundState.CLAIMED, RoundState.RUNNING):
                raise RoundOver(f"round {round_id} is {record.state}")
            champion = self._champion(connection)
            return self._save(
                connection,
                record,
                state=RoundState.RUNNING,
                attempts=record.attempts + 1,
                champion_version=champion.model_version if champion else None,
                started_at=record.started_at or self._clock(),
                heartbeat_at=self._clock(),
            )

    def update_round(self, round_id: str, **fields: object) -> None:
        """Set fields of an unfinished round, and its heartbeat. Raises RoundOver when it has ended."""
        with self._write() as connection:
            record = self._round(connection, round_id)
            if record.state in FINAL_STATES:
                raise RoundOver(f"round {round_id} is {record.state}")
            self._save(connection, record, heartbeat_at=self._clock(), **fields)

    def finish_round(self, round_id: str, state: RoundState, *, detail: str) -> None:
        """End a round (or park it as awaiting approval). Ending it in the same state again is a no-op.

        Raises:
            RoundOver: it ended in another state.

        """
        with self._write() as connection:
            self._finish(connection, round_id, state, detail)

    def looks_since_promotion(self) -> int:
        """How many rounds were judged by gates since the last promotion (bootstraps apart)."""
        looks = 0
        for record in self.rounds():
            if record.state is RoundState.PROMOTED:
                break
            looks += bool(record.gate_report and not record.gate_report.bootstrap and record.state in FINAL_STATES)
        return looks

    def last_cut(self) -> dict[str, int]:
        """The cut of the newest round that did not fail; {} if there is none."""
        ended = (r for r in self.rounds() if r.state is not RoundState.FAILED)
        return next((record.cut for record in ended), {})

    def _unfinished(self, connection: sa.Connection) -> RoundRecord | None:
        query = sa.select(t.rounds.c.record).where(t.rounds.c.model_name == self.model_name, sa.text(t.UNFINISHED))
        text = connection.execute(query).scalar()
        return RoundRecord.model_validate_json(text) if text else None

    def _round(self, connection: sa.Connection, round_id: str) -> RoundRecord:
        mine = (t.rounds.c.round_id == round_id) & (t.rounds.c.model_name == self.model_name)
        text = connection.execute(sa.select(t.rounds.c.record).where(mine)).scalar()
        if text is None:
            raise UnknownRound(round_id)
        return RoundRecord.model_validate_json(text)

    def _finish(self, connection: sa.Connection, round_id: str, state: RoundState, detail: str) -> None:
        record = self._round(connection, round_id)
        if record.state is state:
            return
        if record.state in FINAL_STATES and state is not RoundState.PROMOTED:
            raise RoundOver(f"round {round_id} is {record.state}")
        finished = self._clock() if state in FINAL_STATES else None
        self._save(connection, record, state=state, detail=detail, finished_at=finished)

    def _save(self, connection: sa.Connection, record: RoundRecord, **fields: object) -> RoundRecord:
        saved = RoundRecord.model_validate({**dict(record), **fields})
        connection.execute(
            t.rounds.update()
            .where(t.rounds.c.round_id == record.round_id)
            .values(state=saved.state.value, record=saved.model_dump_json())
        )
        return saved

    # --- leases, workers, positions ---------------------------------------------------------------------------------

    def acquire_lease(self, name: str, holder: str, ttl_s: float) -> int | None:
        """The fencing token of a lease, taken or renewed for `ttl_s` seconds; None while another holds it.

        Every change of holder makes the token grow (Kleppmann 2016, "How to do distributed locking").
        """
        mine = (t.leases.c.model_name == self.model_name) & (t.leases.c.name == name)
        expires = _iso(self._clock() + timedelta(seconds=ttl_s))
        with self._write() as connection:
            row = connection.execute(sa.select(t.leases).where(mine)).first()
            if row is None:
                values = {"model_name": self.model_name, "name": name, "holder": holder, "token": 1}
                connection.execute(t.leases.insert().values(**values, expires_at=expires))
                return 1
            if row.holder != holder and row.holder is not None and row.expires_at > self._now():
                return None
            token: int = row.token + (1 if row.holder != holder else 0)
            connection.execute(t.leases.update().where(mine).values(holder=holder, token=token, expires_at=expires))
            return token

    def release_lease(self, name: str, holder: str) -> None:
        """Give a lease back, if `holder` has it."""
        mine = (t.leases.c.model_name == self.model_name) & (t.leases.c.name == name) & (t.leases.c.holder == holder)
        with self._write() as connection:
            connection.execute(t.leases.update().where(mine).values(holder=None))

    def _check_token(self, connection: sa.Connection, token: int | None) -> None:
        if token is None:
            return
        mine = (t.leases.c.model_name == self.model_name) & (t.leases.c.name == "scheduler")
        current = connection.execute(sa.select(t.leases.c.token).where(mine)).scalar()
        if current != token:
            raise StaleLease(f"fencing token {token} is not the scheduler's any more: it is {current}")

    def heartbeat(
        self, worker: str, host: str, *, model_version: str | None, generation: int, error: str | None
    ) -> None:
        """Note what a serving worker serves."""
        key: dict[str, object] = {"model_name": self.model_name, "host": host, "worker": worker}
        said: dict[str, object] = {
            "model_version": model_version,
            "generation": generation,
            "error": error,
            "seen_at": self._now(),
        }
        with self._write() as connection:
            self._upsert(connection, t.heartbeats, [key | said])

    def workers(self, within_s: float = 30) -> list[WorkerHeartbeat]:
        """Workers heard of in the last `within_s` seconds."""
        since = _iso(self._clock() - timedelta(seconds=within_s))
        mine = (t.heartbeats.c.model_name == self.model_name) & (t.heartbeats.c.seen_at >= since)
        with self._read() as connection:
            rows = connection.execute(sa.select(t.heartbeats).where(mine))
            return [WorkerHeartbeat.model_validate(dict(row._mapping)) for row in rows]

    def record_positions(self, stored: Mapping[str, int]) -> None:
        """Note the last offset stored in the event log, by '<topic_id>/<partition>'; never goes back."""
        with self._write() as connection:
            known = self._positions(connection)
            rows = [
                {"model_name": self.model_name, "partition": key, "last_offset": offset}
                for key, offset in stored.items()
                if offset > known.get(key, -1)
            ]
            self._upsert(connection, t.positions, rows)

    def positions(self) -> dict[str, int]:
        """The last offset stored in the event log, by '<topic_id>/<partition>'."""
        with self._read() as connection:
            return self._positions(connection)

    def _positions(self, connection: sa.Connection) -> dict[str, int]:
        query = sa.select(t.positions.c.partition, t.positions.c.last_offset)
        rows = connection.execute(query.where(t.positions.c.model_name == self.model_name))
        return {row.partition: int(row.last_offset) for row in rows}

    # --- taxonomy, split ledger, audit ------------------------------------------------------------------------------

    def labels(self) -> list[Label]:
        """The taxonomy, in the order of its making."""
        query = sa.select(t.labels).where(t.labels.c.model_name == self.model_name).order_by(t.labels.c.place)
        with self._read() as connection:
            return [Label.model_validate(dict(row._mapping)) for row in connection.execute(query)]

    def active_labels(self) -> list[str]:
        """Names of the labels in use."""
        return [label.name for label in self.labels() if label.state == "active"]

    def set_labels(self, names: Iterable[str]) -> None:
        """Add the labels that are missing."""
        known = {label.name for label in self.labels()}
        wanted = [name for name in dict.fromkeys(names) if name not in known]
        rows = [
            {"model_name": self.model_name, "name": name, "place": len(known) + i, "state": "active"}
            for i, name in enumerate(wanted)
        ]
        with self._write() as connection:
            self._upsert(connection, t.labels, rows)

    def record_sides(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """Write cluster -> side where there is none yet, and return the sides in force: the first writer wins."""
        with self._write() as connection:
            query = sa.select(t.sides.c.cluster, t.sides.c.side).where(t.sides.c.model_name == self.model_name)
            known = {row.cluster: row.side for row in connection.execute(query)}
            rows = [
                {"model_name": self.model_name, "cluster": cluster, "side": side}
                for cluster, side in wanted.items()
                if cluster not in known
            ]
            if rows:
                connection.execute(t.sides.insert(), rows)
            return {cluster: known.get(cluster, side) for cluster, side in wanted.items()}

    def audit(self, actor: str, action: str, detail: Mapping[str, object]) -> None:
        """Append to the audit log."""
        with self._write() as connection:
            self._audit(connection, actor, action, detail)

    def verify_audit(self) -> list[str]:
        """What is wrong with the audit log's hash chain, a sentence each; empty when it is whole."""
        query = sa.select(t.audit).where(t.audit.c.model_name == self.model_name).order_by(t.audit.c.sequence)
        previous, wrong = "", []
        with self._read() as connection:
            for place, row in enumerate(connection.execute(query), start=1):
                if row.sequence != place:
                    wrong.append(f"row {place} is missing")
                if row.hash != _link(previous, row.sequence, row.at, row.actor, row.action, row.detail):
                    wrong.append(f"row {row.sequence} was changed, or the row before it")
                previous = row.hash
        return wrong

    def _audit(self, connection: sa.Connection, actor: str, action: str, detail: Mapping[str, object]) -> None:
        query = sa.select(t.audit.c.sequence, t.audit.c.hash).where(t.audit.c.model_name == self.model_name)
        last = connection.execute(query.order_by(t.audit.c.sequence.desc()).limit(1)).first()
        sequence, previous = (last.sequence + 1, last.hash) if last else (1, "")
        at, text = self._now(), json.dumps(detail, sort_keys=True)
        connection.execute(
            t.audit.insert().values(
                model_name=self.model_name,
                sequence=sequence,
                at=at,
                actor=actor,
                action=action,
                detail=text,
                hash=_link(previous, sequence, at, actor, action, text),
            )
        )

    # --- connections ------------------------------------------------------------------------------------------------

    def _now(self) -> str:
        return _iso(self._clock())

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with _as_unavailable(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with _as_unavailable(), self._engine.connect() as connection, connection.begin():
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                key = int.from_bytes(hashlib.sha256(self.model_name.encode()).digest()[:8], signed=True)
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield connection

    def _upsert(self, connection: sa.Connection, table: sa.Table, rows: list[dict[str, object]]) -> None:
        """Delete-then-insert by primary key: one statement of each, the same on both databases."""
        for row in rows:
            key = sa.and_(*(column == row[column.name] for column in table.primary_key))
            connection.execute(table.delete().where(key))
            connection.execute(table.insert().values(row))


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise RegistryUnavailable(f"the registry refused: {error.orig}") from error
    except SQLAlchemyError as error:
        raise RegistryUnavailable(f"the registry cannot be used: {error}") from error


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # We begin transactions ourselves (BEGIN IMMEDIATE), so that two writers queue instead of failing half-way.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def _link(previous: str, *parts: object) -> str:
    return hashlib.sha256(json.dumps([previous, *map(str, parts)]).encode()).hexdigest()
