"""Rounds: claimed once, run, and ended once.

Turns a trigger into the one unfinished round of a model, and a round's updates into its record. The scheduler claims a
round; the round's process starts, updates and finishes it.

A record is stored as JSON, so that it can grow fields; its state is a column as well, because an index on it makes a
second unfinished round impossible.
"""

from typing import Any

import sqlalchemy as sa

from schemas.events import new_id
from schemas.records import FINAL_STATES, RoundRecord, RoundState, Settling, VersionRecord
from serving.registry import tables as t
from serving.registry.database import Database
from serving.registry.leases import Leases
from serving.registry.versions import STATE_OF_CANDIDATE, ChampionMoved, Versions

UPDATABLE = frozenset(
    {"step", "progress", "pace", "dataset", "candidate_version", "evaluations", "gate_report", "cut", "detail"}
) | {"approvals_needed", "approval_reasons"}
STARTABLE = frozenset({RoundState.CLAIMED, RoundState.RUNNING})
PROMOTABLE = frozenset({RoundState.RUNNING, RoundState.AWAITING_APPROVAL, RoundState.SETTLING})
OVERRULABLE = frozenset({RoundState.REJECTED, RoundState.INSUFFICIENT})
ENDINGS = FINAL_STATES - {RoundState.PROMOTED} | {RoundState.AWAITING_APPROVAL}


class UnknownRound(KeyError):
    """The registry has no such round."""


class RoundOver(RuntimeError):
    """The round's state does not allow the change: it has ended, or has not started."""


class Rounds:
    """The rounds of one model."""

    def __init__(self, database: Database, versions: Versions, leases: Leases) -> None:
        self._database = database
        self._versions = versions
        self._leases = leases

    def claim_round(
        self, *, reason: str, cut: dict[str, int], token: int | None, again: bool = False
    ) -> RoundRecord | None:
        """Return a new round; None while another is unfinished. `again`: judge even what was just judged. Raises StaleLease."""
        with self._database.write() as connection:
            self._leases.check_token(connection, token)
            if self._unfinished(connection):
                return None
            record = RoundRecord(
                round_id=new_id(),
                model_name=self._database.model_name,
                state=RoundState.CLAIMED,
                reason=reason,
                again=again,
                cut=cut,
                created_at=self._database.clock(),
            )
            sequence = self._database.next_number(connection, t.rounds, "sequence")
            key = {"round_id": record.round_id, "model_name": self._database.model_name, "sequence": sequence}
            connection.execute(t.rounds.insert().values(**key, **_stored(record)))
            return record

    def unfinished_round(self) -> RoundRecord | None:
        """Return the round that is claimed, running or awaiting approval; None if there is none."""
        with self._database.read() as connection:
            return self._unfinished(connection)

    def round(self, round_id: str) -> RoundRecord:
        """Return one round. Raises UnknownRound."""
        with self._database.read() as connection:
            return self.read_round(connection, round_id)

    def rounds(self) -> list[RoundRecord]:
        """Return all rounds, newest first."""
        query = self._records().order_by(t.rounds.c.sequence.desc())
        with self._database.read() as connection:
            return [RoundRecord.model_validate_json(text) for text in connection.execute(query).scalars()]

    def start_round(self, round_id: str) -> RoundRecord:
        """Set a claimed or running round to running, with one attempt more, gated against the present champion.

        Raises:
            UnknownRound: no such round.
            RoundOver: it has ended, or awaits approval.

        """
        with self._database.write() as connection:
            record = self.read_round(connection, round_id)
            if record.state not in STARTABLE:
                raise RoundOver(f"round {round_id} is {record.state}: it cannot be started")
            champion = self._versions.read_champion(connection)
            now = self._database.clock()
            return self._save(
                connection,
                record,
                state=RoundState.RUNNING,
                attempts=record.attempts + 1,
                champion_version=champion.model_version if champion else None,
                started_at=record.started_at or now,
                heartbeat_at=now,
            )

    def interrupt_round(self, round_id: str) -> None:
        """Count an attempt of a running round that was ended from outside, through no fault of the round.

        A round that has not started or has ended is left unchanged. Raises UnknownRound.
        """
        with self._database.write() as connection:
            record = self.read_round(connection, round_id)
            if record.state is RoundState.RUNNING:
                self._save(connection, record, interruptions=min(record.interruptions + 1, record.attempts))

    def update_round(self, round_id: str, **fields: object) -> None:
        """Set some of a round's fields (`UPDATABLE`) and its heartbeat; without fields, the heartbeat alone.

        Raises:
            UnknownRound: no such round.
            RoundOver: it has ended.
            ValueError: a field is not one of `UPDATABLE`, or its value is not valid.

        """
        if unknown := sorted(fields.keys() - UPDATABLE):
            raise ValueError(
                f"fields of a round that cannot be set: {', '.join(unknown)}; choose from {', '.join(sorted(UPDATABLE))}"
            )
        with self._database.write() as connection:
            record = self.read_round(connection, round_id)
            if record.state in FINAL_STATES:
                raise RoundOver(f"round {round_id} is {record.state}: it cannot be updated")
            self._save(connection, record, heartbeat_at=self._database.clock(), **fields)

    def finish_round(self, round_id: str, state: RoundState, *, detail: str) -> None:
        """End a round, or set it to awaiting approval. Its present state again changes nothing.

        Raises:
            UnknownRound: no such round.
            RoundOver: it has ended in another state.
            ValueError: `state` is not one of `ENDINGS`; `Registry.promote` alone sets PROMOTED.

        """
        with self._database.write() as connection:
            record = self.read_round(connection, round_id)
            if record.state is state:
                return
            if state not in ENDINGS:
                raise ValueError(f"a round cannot be finished as {state}")
            if record.state in FINAL_STATES:
                raise RoundOver(f"round {round_id} is {record.state}: it cannot become {state}")
            if (
                state is RoundState.AWAITING_APPROVAL
                and record.state is RoundState.SETTLING
                and self._unfinished(connection)
            ):
                raise RoundOver(f"round {round_id} waits until the running round has ended")
            finished_at = self._database.clock() if state in FINAL_STATES else None
            self._save(connection, record, state=state, detail=detail, finished_at=finished_at)

    def begin_settling(self, round_id: str, plan: Settling) -> RoundRecord:
        """Let a judged round wait for labels, and end the older rounds that wait: the newer candidate supersedes theirs.

        A round that is settling already keeps its plan, so that a resumed round changes nothing.

        Raises:
            UnknownRound: no such round.
            RoundOver: it is not running.

        """
        with self._database.write() as connection:
            record = self.read_round(connection, round_id)
            if record.state is RoundState.SETTLING:
                return record
            if record.state is not RoundState.RUNNING:
                raise RoundOver(f"round {round_id} is {record.state}: only a running round can settle")
            for older in self.read_settling(connection):
                self._save(
                    connection,
                    older,
                    state=RoundState.SUPERSEDED,
                    detail=f"superseded by the newer candidate of round {round_id}, before its labels settled it",
                    finished_at=self._database.clock(),
                )
            detail = f"short of evidence: labels on disagreements settle it, until {plan.until:%Y-%m-%d %H:%M} UTC"
            return self._save(connection, record, state=RoundState.SETTLING, settling=plan, detail=detail)

    def update_settling(self, round_id: str, **fields: object) -> RoundRecord:
        """Set fields of a settling round's plan (`Settling`) and return the round; the other fields stay.

        Raises:
            UnknownRound: no such round.
            RoundOver: it is not settling.
            ValueError: a field is not valid.

        """
        with self._database.write() as connection:
            record = self.read_round(connection, round_id)
            if record.state is not RoundState.SETTLING or record.settling is None:
                raise RoundOver(f"round {round_id} is {record.state}: it is not settling")
            plan = Settling.model_validate({**dict(record.settling), **fields})
            return self._save(connection, record, settling=plan)

    def settling_round(self) -> RoundRecord | None:
        """Return the round that waits for labels; None if there is none."""
        with self._database.read() as connection:
            return next(iter(self.read_settling(connection)), None)

    def last_cut(self) -> dict[str, int]:
        """Return the cut of the newest round that has not failed; {} if there is none.

        A failed round did not use its feedback, which therefore counts towards the next trigger again.
        """
        kept = self._records().where(t.rounds.c.state != RoundState.FAILED.value)
        with self._database.read() as connection:
            text = connection.execute(kept.order_by(t.rounds.c.sequence.desc()).limit(1)).scalar()
        return RoundRecord.model_validate_json(text).cut if text else {}

    def end_rejected(self, connection: sa.Connection, round_id: str, detail: str) -> RoundRecord:
        """Return a round set to REJECTED, within an open transaction. Raises UnknownRound, or RoundOver if it has ended."""
        record = self.read_round(connection, round_id)
        if record.state in FINAL_STATES:
            raise RoundOver(f"round {round_id} is {record.state}: it cannot be rejected")
        ended = {"state": RoundState.REJECTED, "detail": detail, "finished_at": self._database.clock()}
        return self._save(connection, record, **ended)

    def end_promoted(
        self,
        connection: sa.Connection,
        round_id: str,
        version: VersionRecord,
        *,
        expected: str | None,
        generation: int,
    ) -> None:
        """Set a round to PROMOTED, within the transaction that promotes its candidate.

        Raises:
            UnknownRound: no such round.
            ValueError: its candidate is another version.
            RoundOver: it is not running, does not await approval, and no person overrules its gates.
            ChampionMoved: it was gated against another champion than `expected`.

        """
        record = self.read_round(connection, round_id)
        _check_promotable(record, version)
        if record.champion_version != expected:
            raise ChampionMoved(f"round {round_id} was gated against {record.champion_version}, not {expected}")
        self._save(
            connection,
            record,
            state=RoundState.PROMOTED,
            candidate_version=version.model_version,
            detail=f"promoted {version.model_version} as generation {generation}",
            finished_at=self._database.clock(),
        )

    def _records(self) -> sa.Select[str]:
        return sa.select(t.rounds.c.record).where(self._database.mine(t.rounds))

    def _unfinished(self, connection: sa.Connection) -> RoundRecord | None:
        text = connection.execute(self._records().where(sa.text(t.UNFINISHED))).scalar()
        return RoundRecord.model_validate_json(text) if text else None

    def read_settling(self, connection: sa.Connection) -> list[RoundRecord]:
        """Return the rounds that wait for labels, within an open transaction: one at most."""
        query = self._records().where(t.rounds.c.state == RoundState.SETTLING.value)
        return [RoundRecord.model_validate_json(text) for text in connection.execute(query).scalars()]

    def read_round(self, connection: sa.Connection, round_id: str) -> RoundRecord:
        """Return one round within an open transaction. Raises UnknownRound."""
        text = connection.execute(self._records().where(t.rounds.c.round_id == round_id)).scalar()
        if text is None:
            raise UnknownRound(f"no round {round_id} of {self._database.model_name}")
        return RoundRecord.model_validate_json(text)

    def _save(self, connection: sa.Connection, record: RoundRecord, **fields: object) -> RoundRecord:
        saved = RoundRecord.model_validate({**dict(record), **fields})
        connection.execute(t.rounds.update().where(t.rounds.c.round_id == record.round_id).values(_stored(saved)))
        candidate, state = saved.candidate_version, STATE_OF_CANDIDATE.get(saved.state.value)
        if candidate and state and saved.state is not record.state:
            self._versions.set_state(connection, candidate, state)
        return saved


def _check_promotable(record: RoundRecord, version: VersionRecord) -> None:
    if record.candidate_version not in (None, version.model_version):
        raise ValueError(f"round {record.round_id} made {record.candidate_version}, not {version.model_version}")
    overruled = record.state in OVERRULABLE and version.approved_by is not None
    if record.state not in PROMOTABLE and not overruled:
        raise RoundOver(f"round {record.round_id} is {record.state}: it cannot be promoted")


def _stored(record: RoundRecord) -> dict[str, Any]:
    return {"state": record.state.value, "record": record.model_dump_json()}
