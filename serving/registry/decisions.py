"""Decisions: promote, approve, reject and roll back, each in one transaction.

Turns a round's candidate, or a version that has served, into the champion, and a person's word into the state of round and
version. Rounds promote. The command line and the console pass on what people decide, after checking that they have the role. Each
decision and its rows of the audit log are written together or not at all.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from schemas.records import Champion, RoundRecord, RoundState, VersionRecord, VersionState
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.database import Database
from serving.registry.leases import Leases
from serving.registry.rounds import RoundOver, Rounds
from serving.registry.versions import ChampionMoved, Versions

AGAINST_ITS_VERDICT = frozenset({"rejected", "insufficient evidence", "settling"})
SERVED = frozenset({VersionState.RETIRED, VersionState.ROLLED_BACK})


class NotServable(ValueError):
    """The version may not serve: its gates did not pass and no named person approved it, or it was rejected."""


class NeedsOverrule(ValueError):
    """The round's gates did not pass: only an explicit overrule promotes its candidate."""


class NoReason(ValueError):
    """The decision needs a reason."""


class DecidedAlready(ValueError):
    """The person has approved this round already; another person has to."""


class NeverServed(ValueError):
    """The version has never served, so nothing can be rolled back to it."""


@dataclass(frozen=True)
class Approval:
    """What an approval led to: how many people have approved, how many have to, and the champion once that many have."""

    given: int
    needed: int
    champion: Champion | None


class Decisions:
    """The decisions on one model's candidates and versions. A person or process responsible is named by `actor`."""

    def __init__(
        self, database: Database, audit_log: AuditLog, versions: Versions, leases: Leases, rounds: Rounds
    ) -> None:
        self._database = database
        self._audit_log = audit_log
        self._versions = versions
        self._leases = leases
        self._rounds = rounds

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
            NotServable: its gates did not pass and nobody approved it, or it was rejected.
            RoundOver: the round failed or was skipped, was rejected and not overruled, has not started, or has promoted
                another version.
            ValueError: the round's candidate is another version.

        """
        with self._database.write() as connection:
            if round_id and (earlier := self._versions.promoted_by(connection, round_id)):
                if earlier.model_version != model_version:
                    raise RoundOver(f"round {round_id} has promoted {earlier.model_version}")
                return earlier
            generation = self._versions.check_champion(connection, expected) + 1
            self._leases.check_token(connection, token)
            version = self._versions.read_version(connection, model_version)
            if version.state is VersionState.REJECTED:
                raise NotServable(f"{model_version} was rejected: `ratchet round approve --overrule` decides otherwise")
            if not version.servable:
                raise NotServable(f"{model_version} has not passed its gates and nobody approved it")
            return self._move(connection, version, expected, generation, actor, round_id)

    def approve(self, round_id: str, *, actor: str, reason: str, overrule: bool = False) -> Approval:
        """Record that `actor` approves a round's candidate; promote it once as many people have as the round's policy asks.

        Args:
            round_id: a round that awaits approval or, with `overrule`, one whose gates did not pass.
            actor: the person, whose role the caller has checked.
            reason: for the audit log; not empty.
            overrule: approve against the verdict of the gates, or against a person's rejection.

        Raises:
            UnknownRound: no such round.
            NoReason: `reason` is empty.
            RoundOver: the round has no candidate that anybody could approve.
            NeedsOverrule: its gates did not pass, or a person rejected it, and `overrule` is not set.
            ChampionMoved: it was judged against a version that is not the champion any more.
            DecidedAlready: `actor` has approved it, and another person is still missing.

        """
        _check_reason(reason, f"`ratchet round approve {round_id}`")
        with self._database.write() as connection:
            record, version = self._approvable(connection, round_id, overrule)
            generation = self._check_judged_champion(connection, record) + 1
            people = self._approve(connection, record, actor, reason)
            overruled = record.state.value if record.state is not RoundState.AWAITING_APPROVAL else None
            needed = record.approvals_needed
            why = {"round": round_id, "version": version.model_version, "overruled": overruled, "reason": reason}
            self._audit_log.append(connection, actor, "round approve", {**why, "given": len(people), "needed": needed})
            if len(people) < needed:
                return Approval(len(people), needed, None)
            version = self._versions.set_approved(connection, version, ", ".join(people))
            champion = self._move(connection, version, record.champion_version, generation, actor, round_id)
            return Approval(len(people), needed, champion)

    def reject(self, round_id: str, *, actor: str, reason: str) -> RoundRecord:
        """Return a round that `actor` rejected, with its candidate; a running one ends, and earlier approvals count no more.

        Raises:
            UnknownRound: no such round.
            NoReason: `reason` is empty.
            RoundOver: it has ended.

        """
        _check_reason(reason, f"`ratchet round reject {round_id}`")
        with self._database.write() as connection:
            record = self._rounds.end_rejected(connection, round_id, f"rejected by {actor}: {reason}")
            connection.execute(t.approvals.delete().where(self._approvals_of(round_id)))
            self._audit_log.append(connection, actor, "round reject", {"round": round_id, "reason": reason})
            return record

    def rollback_target(self, to: str | None, champion: str) -> str:
        """Return the version that `roll_back` would make the champion, so that its files can be checked. Raises as it does."""
        with self._database.read() as connection:
            return self._target(connection, to, champion).model_version

    def roll_back(self, *, to: str | None, expected: str, actor: str, reason: str) -> Champion:
        """Make a version that has served the champion again; the present champion becomes `rolled back`.

        Args:
            to: the version; None: the newest earlier champion that nobody rolled back.
            expected: the version that is champion now, as the caller saw it.
            actor: the person, whose role the caller has checked.
            reason: for the audit log. Needed to return to a version that was itself rolled back.

        Raises:
            UnknownVersion: no such version.
            NeverServed: `to` has never served, or no earlier champion is left to go back to.
            NoReason: `to` was rolled back, and `reason` is empty.
            ChampionMoved: the champion is not `expected`.
            ValueError: `to` is the champion.

        """
        with self._database.write() as connection:
            generation = self._versions.check_champion(connection, expected) + 1
            version = self._target(connection, to, expected)
            if version.state is VersionState.ROLLED_BACK:
                _check_reason(reason, f"a return to {version.model_version}, which was rolled back,")
            champion = self._move(
                connection, version, expected, generation, actor, None, leaves=VersionState.ROLLED_BACK
            )
            move = {"from": expected, "to": version.model_version, "reason": reason}
            self._audit_log.append(connection, actor, "rollback", move)
            return champion

    def _move(
        self,
        connection: sa.Connection,
        version: VersionRecord,
        expected: str | None,
        generation: int,
        actor: str,
        round_id: str | None,
        *,
        leaves: VersionState = VersionState.RETIRED,
    ) -> Champion:
        """Make `version` the champion of `generation`; the champion `expected` goes into the state `leaves`."""
        if round_id:
            self._rounds.end_promoted(connection, round_id, version, expected=expected, generation=generation)
        if expected is not None:
            self._versions.set_state(connection, expected, leaves)
        self._versions.set_state(connection, version.model_version, VersionState.CHAMPION)
        champion = self._versions.add_champion(connection, version, generation, actor, round_id)
        move = {"from": expected, "to": version.model_version, "generation": generation, "round": round_id}
        self._audit_log.append(connection, actor, "promote", move)
        return champion

    def _approvable(
        self, connection: sa.Connection, round_id: str, overrule: bool
    ) -> tuple[RoundRecord, VersionRecord]:
        """Return a round that can be approved, and its candidate. Raises RoundOver, NeedsOverrule."""
        record = self._rounds.read_round(connection, round_id)
        against = record.state.value in AGAINST_ITS_VERDICT
        if record.candidate_version is None or not (against or record.state is RoundState.AWAITING_APPROVAL):
            raise RoundOver(
                f"round {round_id} is {record.state}: only rounds that await approval, were rejected or ended with "
                "insufficient evidence have a candidate to approve"
            )
        if against and not overrule:
            raise NeedsOverrule(
                f"round {round_id} is {record.state}: {record.detail or 'its gates did not pass'}; to promote its candidate "
                f'against that, add --overrule --reason "..."'
            )
        return record, self._versions.read_version(connection, record.candidate_version)

    def _check_judged_champion(self, connection: sa.Connection, record: RoundRecord) -> int:
        """Return the champion's generation. Raises ChampionMoved unless the round was judged against that champion."""
        champion = self._versions.read_champion(connection)
        current = champion.model_version if champion else None
        if current != record.champion_version:
            raise ChampionMoved(
                f"the champion is {current or 'none'}, and {record.candidate_version} was judged against "
                f"{record.champion_version or 'none'}: `ratchet round reject {record.round_id}`, then run another round"
            )
        return champion.generation if champion else 0

    def _approve(self, connection: sa.Connection, record: RoundRecord, actor: str, reason: str) -> list[str]:
        """Record an approval; return everybody who has approved, in order. Raises DecidedAlready."""
        query = sa.select(t.approvals.c.person).where(self._approvals_of(record.round_id))
        query = query.order_by(t.approvals.c.approved_at)
        people = list(connection.execute(query).scalars())
        if actor in people:
            raise DecidedAlready(
                f"{actor} has approved round {record.round_id} already; {record.approvals_needed} people have to: "
                "another reviewer is missing"
            )
        key = {"model_name": self._database.model_name, "round_id": record.round_id, "person": actor}
        connection.execute(t.approvals.insert().values({**key, "reason": reason, "approved_at": self._database.now()}))
        return [*people, actor]

    def _approvals_of(self, round_id: str) -> sa.ColumnElement[bool]:
        return self._database.mine(t.approvals) & (t.approvals.c.round_id == round_id)

    def _target(self, connection: sa.Connection, to: str | None, champion: str) -> VersionRecord:
        """Return the version to roll back to. Raises UnknownVersion, NeverServed, or ValueError for the champion itself."""
        version = self._versions.read_version(connection, to) if to else self._earlier(connection, champion)
        if version.model_version == champion:
            raise ValueError(f"{champion} is the champion already: name an earlier version of `ratchet model list`")
        if version.state not in SERVED:
            raise NeverServed(
                f"{version.model_version} ({version.state}) has never served: roll back to a version that is retired in "
                "`ratchet model list`; `ratchet round approve ROUND --overrule --reason ...` promotes a new one"
            )
        return version

    def _earlier(self, connection: sa.Connection, champion: str) -> VersionRecord:
        """Return the newest earlier champion that nobody rolled back. Raises NeverServed."""
        retired = t.versions.c.state == VersionState.RETIRED.value
        named = (t.promotions.c.model_name == t.versions.c.model_name) & (
            t.promotions.c.model_version == t.versions.c.model_version
        )
        served = (
            sa.select(t.promotions.c.model_version).join(t.versions, named).where(self._database.mine(t.promotions))
        )
        newest = served.where(retired).order_by(t.promotions.c.generation.desc()).limit(1)
        earlier = connection.execute(newest).scalar()
        if earlier is None:
            raise NeverServed(
                f"there is no other version to roll back to: no champion before {champion} is left that was not rolled back; "
                "name one with a reason, see `ratchet model list`"
            )
        return self._versions.read_version(connection, earlier)


def _check_reason(reason: str, what: str) -> None:
    if not reason.strip():
        raise NoReason(f'{what} needs a reason for the audit log: add --reason "..."')
