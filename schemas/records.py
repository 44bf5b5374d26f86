"""Records: the registry's rows as values. Every process reads them."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field, JsonValue

from schemas.events import Frozen
from schemas.manifests import DatasetManifest
from schemas.reports import EvaluationReport, GateReport


class Role(StrEnum):
    """What the holder of a named key may do. An admin may do everything."""

    PREDICT = "predict"
    FEEDBACK = "feedback"
    REVIEW = "review"
    ADMIN = "admin"


class Person(Frozen):
    """A person or an app that a key identifies."""

    name: str
    roles: tuple[Role, ...]
    key_id: str = Field(description="public id of the key")
    rate: str | None = Field(default=None, description="requests within a time, as 600/minute; unset: access.rate")
    quota: str | None = Field(default=None, description="texts within a time, as 100000/day; unset: access.quota")

    def may(self, role: Role) -> bool:
        """Return whether the person has the role, or is an admin."""
        return role in self.roles or Role.ADMIN in self.roles


class NamedKey(Person):
    """One key of a person, as the registry stores it: its hash, never the key itself."""

    key_hash: str = Field(description="SHA-256 of the key", repr=False)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = Field(default=None, description="set on the earlier key by a rotation")
    revoked_at: AwareDatetime | None = None

    def valid(self, now: datetime) -> bool:
        """Return whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def person(self) -> Person:
        """Return whom the key identifies, without its hash."""
        return Person(name=self.name, roles=self.roles, key_id=self.key_id, rate=self.rate, quota=self.quota)


class VersionState(StrEnum):
    """The one state of a model version."""

    CANDIDATE = "candidate"
    SETTLING = "settling"
    AWAITING_APPROVAL = "awaiting approval"
    CHAMPION = "champion"
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled back"


class RoundState(StrEnum):
    """The state of a round. The last six are final.

    A settling round has its gate report and waits for labels; other rounds may run meanwhile.
    """

    CLAIMED = "claimed"
    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting approval"
    SETTLING = "settling"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    INSUFFICIENT = "insufficient evidence"
    SUPERSEDED = "superseded"
    SKIPPED = "skipped"
    FAILED = "failed"


FINAL_STATES = frozenset(
    {
        RoundState.PROMOTED,
        RoundState.REJECTED,
        RoundState.INSUFFICIENT,
        RoundState.SUPERSEDED,
        RoundState.SKIPPED,
        RoundState.FAILED,
    }
)

# States of a round that the gates are done with.
GATED_STATES = FINAL_STATES | {RoundState.SETTLING}


class Pace(Frozen):
    """Loss, speed and time left of a training."""

    loss: float | None = Field(default=None, description="loss of the last step")
    tokens_per_s: float | None = None
    eta_s: float | None = Field(default=None, description="maximum seconds to the end of training at the current speed")

    def __str__(self) -> str:
        parts = [
            "" if self.loss is None else f"loss {self.loss:.3f}",
            "" if self.tokens_per_s is None else f"{self.tokens_per_s:,.0f} tokens/s",
            "" if self.eta_s is None else f"{self.eta_s:.0f} s left",
        ]
        return ", ".join(part for part in parts if part)


class Settling(Frozen):
    """How labels on disagreements settle a round that the reference set left open."""

    look: int = Field(ge=1, description="number of this judgement against the same champion version")
    alpha: float = Field(gt=0, lt=1, description="level of this look, before the reference set's evidence")
    reference_e: float = Field(1.0, gt=0, description="e-value of the reference set; it multiplies the level")
    horizon: int = Field(ge=1, description="maximum labels that favour one of the two models")
    harm_alpha: float = Field(0.05, gt=0, lt=1, description="level at which labels show harm")
    since: AwareDatetime = Field(description="traffic from this time on is answered by both models")
    until: AwareDatetime = Field(description="the round ends without a verdict at this time")
    answered: int = Field(0, ge=0, description="distinct texts that both models answered")
    answered_until: AwareDatetime | None = Field(default=None, description="storage time up to which traffic was read")
    disagreements: int = Field(0, ge=0, description="answered texts on which they disagree")
    labels: int = Field(0, ge=0, description="labels that count so far")
    about: int | None = Field(default=None, description="estimated labels in total")
    wins: int | None = Field(default=None, description="labels for the candidate; None until the verdict")
    losses: int | None = Field(default=None, description="labels for the champion; None until the verdict")

    @property
    def line(self) -> str:
        """Return "14 of about 40 labels"."""
        return f"{self.labels} labels" if self.about is None else f"{self.labels} of about {self.about} labels"


class RoundRecord(Frozen):
    """A round in the registry."""

    round_id: str
    model_name: str
    state: RoundState
    step: str | None = Field(default=None, description="current step, or the last one of a round that ended")
    progress: float | None = Field(default=None, ge=0, le=1)
    pace: Pace | None = Field(default=None, description="set while the round trains")
    reason: str = Field(description="why the round was triggered")
    again: bool = Field(default=False, description="run even if the last judged round had the same rows and champion")
    cut: dict[str, int] = Field(default_factory=dict)
    champion_version: str | None = Field(default=None, description="version that the gates compare with")
    candidate_version: str | None = None
    gate_report: GateReport | None = None
    evaluations: dict[str, EvaluationReport] = Field(
        default_factory=dict, description="'champion', 'candidate', 'probe'"
    )
    dataset: DatasetManifest | None = None
    settling: Settling | None = Field(default=None, description="set once the round waits, or waited, for labels")
    detail: str | None = Field(default=None, description="reason of its final state, in one sentence")
    approvals_needed: int = Field(default=1, ge=1, description="people who have to approve, by the policy of the round")
    approval_reasons: list[str] = Field(
        default_factory=list, description="why the policy wants people to approve the candidate, if it passes"
    )
    attempts: int = 0
    interruptions: int = Field(
        default=0, description="attempts that ended because `ratchet up` was stopped; they are not failures"
    )
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    heartbeat_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None


class Look(Frozen):
    """One look at the reference set: a candidate was compared with a champion, and alpha was spent."""

    sequence: int = Field(description="from 1, over all champions")
    round_id: str
    champion: str
    candidate: str
    number: int = Field(description="from 1, among the looks at this champion version")
    rows: int = Field(description="rows that judged")
    fresh_rows: int = Field(description="of these, rows on which this champion was judged for the first time")
    rows_sha256: str = Field(description="fingerprint of the rows with their labels")
    alpha: float = Field(description="level of the test of a gain")
    p: float | None = Field(default=None, description="its p-value; none if the round ended before it was known")
    verdict: str | None = Field(default=None, description="of the round's gates")
    at: AwareDatetime


class VersionRecord(Frozen):
    """A model version in the registry."""

    model_version: str
    digest: str = Field(description="SHA-256 of its manifest.json, which is its address in the artefact store")
    parent_version: str | None
    round_id: str
    created_at: AwareDatetime
    servable: bool = Field(description="its gates passed, or a person approved it")
    state: VersionState = VersionState.CANDIDATE
    approved_by: str | None = None


class Champion(Frozen):
    """The champion pointer: which version is live."""

    model_version: str
    digest: str
    generation: int
    promoted_at: AwareDatetime
    round_id: str | None
    actor: str


class WorkerHeartbeat(Frozen):
    """The last heartbeat of one serving worker."""

    worker: str = Field(description="process id, as text")
    host: str
    model_version: str | None
    generation: int
    error: str | None
    seen_at: AwareDatetime


class IngestionNote(Frozen):
    """What the feedback consumer counted or has trouble with at one place."""

    kind: str
    subject: str = Field(description="'<topic>/<partition>', a topic, or a process")
    count: int
    last_offset: int | None
    detail: str
    noted_at: AwareDatetime


class Label(Frozen):
    """One label of the project's taxonomy."""

    name: str
    state: Literal["active", "retired", "merged"] = "active"
    merged_into: str | None = None


class TrustDecision(Frozen):
    """What a reviewer decided about a person who gives feedback."""

    user: str = Field(description="pseudonym")
    decision: Literal["released", "rejected"] = Field(description="never quarantined, or always")
    decided_by: str
    reason: str
    decided_at: AwareDatetime


class Trusted(Frozen):
    """The pseudonyms that a reviewer decided about, for a dataset build."""

    released: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()


class AuditRow(Frozen):
    """One row of the audit log."""

    sequence: int = Field(description="from 1, without gaps")
    at: AwareDatetime
    actor: str
    action: str
    detail: dict[str, JsonValue]
    previous: str = Field(description="hash of the row before; zeros for the first")
    hash: str = Field(description="SHA-256 over all the other columns")
