"""Records: the registry's rows as values. Every process reads them."""

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field, JsonValue

from schemas.events import Frozen
from schemas.manifests import DatasetManifest
from schemas.reports import EvaluationReport, GateReport


class RoundState(StrEnum):
    """The state of a round. The last five are final."""

    CLAIMED = "claimed"
    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting approval"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    INSUFFICIENT = "insufficient evidence"
    SKIPPED = "skipped"
    FAILED = "failed"


FINAL_STATES = frozenset(
    {RoundState.PROMOTED, RoundState.REJECTED, RoundState.INSUFFICIENT, RoundState.SKIPPED, RoundState.FAILED}
)


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


class RoundRecord(Frozen):
    """A round in the registry."""

    round_id: str
    model_name: str
    state: RoundState
    step: str | None = Field(default=None, description="current step, or the last one of a round that ended")
    progress: float | None = Field(default=None, ge=0, le=1)
    pace: Pace | None = Field(default=None, description="set while the round trains")
    reason: str = Field(description="why the round was triggered")
    cut: dict[str, int] = Field(default_factory=dict)
    champion_version: str | None = Field(default=None, description="version that the gates compare with")
    candidate_version: str | None = None
    gate_report: GateReport | None = None
    evaluations: dict[str, EvaluationReport] = Field(
        default_factory=dict, description="'champion', 'candidate', 'probe'"
    )
    dataset: DatasetManifest | None = None
    detail: str | None = Field(default=None, description="reason of its final state, in one sentence")
    attempts: int = 0
    interruptions: int = Field(
        default=0, description="attempts that ended because `ratchet up` was stopped; they are not failures"
    )
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    heartbeat_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None


class VersionRecord(Frozen):
    """A model version in the registry."""

    model_version: str
    digest: str = Field(description="SHA-256 of its manifest.json, which is its address in the artefact store")
    parent_version: str | None
    round_id: str
    created_at: AwareDatetime
    servable: bool = Field(description="its gates passed, or a person approved it")
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


class Label(Frozen):
    """One label of the project's taxonomy."""

    name: str
    state: Literal["active", "retired", "merged"] = "active"
    merged_into: str | None = None


class AuditRow(Frozen):
    """One row of the audit log."""

    sequence: int = Field(description="from 1, without gaps")
    at: AwareDatetime
    actor: str
    action: str
    detail: dict[str, JsonValue]
    previous: str = Field(description="hash of the row before; zeros for the first")
    hash: str = Field(description="SHA-256 over all the other columns")
