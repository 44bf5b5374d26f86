"""Rounds: claimed once, run, and ended once.

Turns a trigger into the one unfinished round of a model, and a round's news into its record. The scheduler claims, the
round's own process starts, updates and finishes. It deliberately does not know what a round does.

A record is stored as JSON, so that it can grow fields; its state is a column as well, because an index on it makes a
second unfinished round impossible.
"""

from typing import Any

import sqlalchemy as sa

from schemas.events import new_id
from schemas.records import FINAL_STATES, RoundRecord, RoundState, VersionRecord
from serving.registry import tables as t
from serving.registry.leases import Leases
from serving.registry.versions import Versions

NEWS = frozenset(
    {"step", "progress", "pace", "dataset", "candidate_version", "evaluations", "gate_report", "cut", "detail"}
)
STARTABLE = frozenset({RoundState.CLAIMED, RoundState.RUNNING})
PROMOTABLE = frozenset({RoundState.RUNNING, RoundState.AWAITING_APPROVAL})
OVERRULABLE = frozenset({RoundState.REJECTED, RoundState.INSUFFICIENT})
ENDINGS = FINAL_STATES - {RoundState.PROMOTED} | {RoundState.AWAITING_APPROVAL}


class UnknownRound(KeyError):
    """No such round."""


class RoundOver(RuntimeError):
    """The round is in a state that this does not lead on from: it has ended, or has not begun."""


class Rounds(Versions, Leases):
    """Rounds of one model."""

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
            sequence = self._next(connection, t.rounds, "sequence")
            key = {"round_id": record.round_id, "model_name": self.model_name, "sequence": sequence}
            connection.execute(t.rounds.insert().values(**key, **_stored(record)))
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
        query = self._records().order_by(t.rounds.c.sequence.desc())
        with self._read() as connection:
            return [RoundRecord.model_validate_json(text) for text in connection.execute(query).scalars()]

    def start_round(self, round_id: str) -> RoundRecord:
        """Claimed or running -> running, one attempt more, to be gated against today's champion.

        Raises:
            UnknownRound: no such round.
            RoundOver: it has ended, or awaits approval.

        """
        with self._write() as connection:
            record = self._round(connection, round_id)
            if record.state not in STARTABLE:
                raise RoundOver(f"round {round_id} is {record.state}: it cannot be started")
            champion = self._champion(connection)
            now = self._clock()
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
        """Note that a running round's attempt was ended from outside, through no fault of the round.

        Nothing is noted of a round that has not begun or has ended. Raises UnknownRound.
        """
        with self._write() as connection:
            record = self._round(connection, round_id)
            if record.state is RoundState.RUNNING:
                self._save(connection, record, interruptions=min(record.interruptions + 1, record.attempts))

    def update_round(self, round_id: str, **fields: object) -> None:
        """Set some of a round's fields (`NEWS`), and its heartbeat; without fields it is a heartbeat alone.

        Raises:
            UnknownRound: no such round.
            RoundOver: it has ended.
            ValueError: a field is not one of `NEWS`, or its value is not valid.

        """
        if unknown := sorted(fields.keys() - NEWS):
            raise ValueError(f"a round has no field to set named {', '.join(unknown)}")
        with self._write() as connection:
            record = self._round(connection, round_id)
            if record.state in FINAL_STATES:
                raise RoundOver(f"round {round_id} is {record.state}: it cannot be updated")
            self._save(connection, record, heartbeat_at=self._clock(), **fields)

    def finish_round(self, round_id: str, state: RoundState, *, detail: str) -> None:
        """End a round, or park it as awaiting approval. The same state again is a no-op.

        Raises:
            UnknownRound: no such round.
            RoundOver: it has ended in another state.
            ValueError: `state` is no ending; PROMOTED is one that only `promote` gives.

        """
        with self._write() as connection:
            record = self._round(connection, round_id)
            if record.state is state:
                return
            if state not in ENDINGS:
                raise ValueError(f"a round cannot be finished as {state}")
            if record.state in FINAL_STATES:
                raise RoundOver(f"round {round_id} is {record.state}: it cannot become {state}")
            finished_at = self._clock() if state in FINAL_STATES else None
            self._save(connection, record, state=state, detail=detail, finished_at=finished_at)

    def looks_since_promotion(self) -> int:
        """How many rounds were judged by gates since a round was last promoted (bootstraps apart).

        A rollback starts no new count: the champion that is back was already looked at.
        """
        looks = 0
        for record in self.rounds():
            if record.state is RoundState.PROMOTED:
                break
            looks += bool(record.gate_report and not record.gate_report.bootstrap and record.state in FINAL_STATES)
        return looks

    def last_cut(self) -> dict[str, int]:
        """The cut of the newest round that has not failed; {} if there is none.

        A failed round's feedback was not used up, so it counts towards the next trigger again.
        """
        kept = self._records().where(t.rounds.c.state != RoundState.FAILED.value)
        with self._read() as connection:
            text = connection.execute(kept.order_by(t.rounds.c.sequence.desc()).limit(1)).scalar()
        return RoundRecord.model_validate_json(text).cut if text else {}

    def _records(self) -> sa.Select[str]:
        return sa.select(t.rounds.c.record).where(self._mine(t.rounds))

    def _unfinished(self, connection: sa.Connection) -> RoundRecord | None:
        text = connection.execute(self._records().where(sa.text(t.UNFINISHED))).scalar()
        return RoundRecord.model_validate_json(text) if text else None

    def _round(self, connection: sa.Connection, round_id: str) -> RoundRecord:
        text = connection.execute(self._records().where(t.rounds.c.round_id == round_id)).scalar()
        if text is None:
            raise UnknownRound(f"no round {round_id} of {self.model_name}")
        return RoundRecord.model_validate_json(text)

    def _check_outcome(self, record: RoundRecord, version: VersionRecord) -> None:
        """Raise unless the round may now promote `version`: it runs, it awaits approval, or a person overrules it."""
        if record.candidate_version not in (None, version.model_version):
            raise ValueError(f"round {record.round_id} made {record.candidate_version}, not {version.model_version}")
        overruled = record.state in OVERRULABLE and version.approved_by is not None
        if record.state not in PROMOTABLE and not overruled:
            raise RoundOver(f"round {record.round_id} is {record.state}: it cannot be promoted")

    def _save(self, connection: sa.Connection, record: RoundRecord, **fields: object) -> RoundRecord:
        saved = RoundRecord.model_validate({**dict(record), **fields})
        connection.execute(t.rounds.update().where(t.rounds.c.round_id == record.round_id).values(_stored(saved)))
        return saved


def _stored(record: RoundRecord) -> dict[str, Any]:
    return {"state": record.state.value, "record": record.model_dump_json()}
