"""Trust: which people's feedback a reviewer released from quarantine, or rejected.

Turns pseudonyms and a decision into rows of the registry. The console writes them. Dataset builds read them: a released person
is never quarantined, a rejected one always is. Decisions concern people who gave feedback, not those who sign in.
"""

from collections.abc import Iterable

import sqlalchemy as sa

from schemas.records import TrustDecision, Trusted
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.database import Database, values

UNDECIDED = "undecided"


class Trust:
    """The decisions about one model's people."""

    def __init__(self, database: Database, audit_log: AuditLog) -> None:
        self._database = database
        self._audit_log = audit_log

    def decide(self, users: Iterable[str], decision: str, *, actor: str, reason: str) -> None:
        """Record a decision for each person, audited: "released", "rejected", or "undecided" to forget an earlier one."""
        with self._database.write() as connection:
            named = list(dict.fromkeys(users))
            for user in named:
                mine = self._database.mine(t.trust) & (t.trust.c.user == user)
                connection.execute(t.trust.delete().where(mine))
                if decision != UNDECIDED:
                    key = {"model_name": self._database.model_name, "user": user, "decision": decision}
                    why = {"decided_by": actor, "reason": reason, "decided_at": self._database.now()}
                    connection.execute(t.trust.insert().values({**key, **why}))
            detail = {"people": named, "decision": decision, "reason": reason}
            self._audit_log.append(connection, actor, "quarantine", detail)

    def decisions(self) -> list[TrustDecision]:
        """Return every decision that is in force, newest first."""
        query = sa.select(t.trust).where(self._database.mine(t.trust)).order_by(t.trust.c.decided_at.desc())
        with self._database.read() as connection:
            return [TrustDecision.model_validate(values(row)) for row in connection.execute(query)]

    def trusted(self) -> Trusted:
        """Return the pseudonyms by decision, for a dataset build."""
        decided = self.decisions()
        return Trusted(
            released=frozenset(one.user for one in decided if one.decision == "released"),
            rejected=frozenset(one.user for one in decided if one.decision == "rejected"),
        )
