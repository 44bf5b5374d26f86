"""The policy: every threshold of the gates, in a file that is stored with the round.

Turns the text of `policy.toml` into a `Policy`, and two policies into a list of changes. `ratchet init` writes
`default_policy`, training_round.py loads the file, and the gates read the `Policy`.
"""

import hashlib
import json
from string import Template
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.gates import policy_template, settling_policy
from pipelines.gates.alpha_spending import ONE_LOOK, share_at
from pipelines.gates.approval import TEMPLATE, ApprovalPolicy
from pipelines.gates.settling_policy import SettlingPolicy
from schemas import toml_file
from schemas.targets import Task

FILE = "policy.toml"


def default_policy(task: Task) -> str:
    """Return the text of policy.toml for a new project of this task."""
    template = Template(policy_template.TEMPLATE + settling_policy.TEMPLATE + TEMPLATE)
    return template.substitute({**policy_template.VALUES, **policy_template.VALUES_OF_TASK.get(task, {})})


class BadPolicy(ValueError):
    """Raised if policy.toml has an unknown key or a bad value."""


class _Gate(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    blocking: bool = True


class DataPolicy(_Gate):
    """Limits on the size of the reference set, on leaked rows, on quarantined people and on label drift."""

    min_judge_rows: int = Field(100, ge=0)
    max_quarantined_people_share: float = Field(0.5, ge=0, le=1)
    max_leaked_rows: int = Field(0, ge=0)
    max_drift: float = Field(0.25, gt=0)


class SuperiorityPolicy(_Gate):
    """Metric (`metric_of_task` maps it to a task's), and the significance level that all looks share."""

    metric: Literal["accuracy_or_brier", "accuracy", "nll", "brier", "macro_f1", "micro_f1"] = "accuracy_or_brier"
    alpha: float = Field(0.05, gt=0, lt=1)


class MarginPolicy(_Gate):
    """Margin in the task's main metric."""

    margin: float = Field(0.01, ge=0, le=1)


class NonInferiorityPolicy(MarginPolicy):
    """Margin, and the probability, shared by all looks, that a loss beyond it passes."""

    alpha: float = Field(0.1, gt=0, lt=1)


class SlicesPolicy(MarginPolicy):
    """Probability of a loss beyond the margin, and number of rows, at which a slice stops a candidate."""

    likely: float = Field(0.8, gt=0, lt=1)
    min_rows: int = Field(200, ge=1)
    alpha: float = Field(0.05, gt=0, lt=1)


class FlipsPolicy(_Gate):
    """Limit on predictions that were right and are wrong now."""

    max_share: float = Field(0.1, ge=0, le=1)


class CalibrationPolicy(_Gate):
    """Level of the tests, the ECE that is always allowed, and the coverage at which sets are checked."""

    alpha: float = Field(0.01, gt=0, lt=1)
    ece_floor: float = Field(0.02, ge=0, le=1)
    coverage: float = Field(0.95, gt=0, lt=1)


class ForgettingPolicy(_Gate):
    """Number of feedback rows that count as recent."""

    recent_rows: int = Field(500, ge=1)


class RobustnessPolicy(_Gate):
    """Limit on predictions that harmless edits change."""

    blocking: bool = False
    max_flips: float = Field(0.1, ge=0, le=1)
    rows: int = Field(500, ge=0)


class ServingPolicy(_Gate):
    """Limits on latency, memory and size of the artefact."""

    max_latency_ms: float = Field(500, gt=0)
    max_memory_mb: float = Field(4000, gt=0)
    max_size_mb: float = Field(4000, gt=0)


class BootstrapPolicy(_Gate):
    """Required gain of the first champion over a constant prediction."""

    min_gain_over_majority: float = Field(0.02, ge=0, le=1)


class CompressedPolicy(_Gate):
    """Limits on how far a compressed artefact may differ from the full-precision model."""

    min_agreement: float = Field(0.985, ge=0, le=1)
    min_student_agreement: float = Field(0.95, ge=0, le=1)
    accuracy_margin: float = Field(0.02, gt=0, le=1)
    nll_margin: float = Field(0.02, gt=0)


class Policy(BaseModel):
    """Thresholds of every gate, as read from policy.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: DataPolicy = DataPolicy()
    superiority: SuperiorityPolicy = SuperiorityPolicy()
    non_inferiority: NonInferiorityPolicy = NonInferiorityPolicy()
    slices: SlicesPolicy = SlicesPolicy()
    flips: FlipsPolicy = FlipsPolicy()
    calibration: CalibrationPolicy = CalibrationPolicy()
    forgetting: ForgettingPolicy = ForgettingPolicy()
    robustness: RobustnessPolicy = RobustnessPolicy()
    baseline: MarginPolicy = MarginPolicy()
    serving: ServingPolicy = ServingPolicy()
    bootstrap: BootstrapPolicy = BootstrapPolicy()
    compressed: CompressedPolicy = CompressedPolicy()
    approval: ApprovalPolicy = ApprovalPolicy()
    settling: SettlingPolicy = SettlingPolicy()

    @property
    def sha256(self) -> str:
        """Return the hash of the values; comments and explicit defaults don't change it."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()

    def values(self) -> dict[str, dict[str, Any]]:
        """Return all values: gate -> key -> value."""
        return dict(self.model_dump(mode="json"))

    def alpha_at(self, look: int, fresh: int | None = None) -> float:
        """Return the level of a look at the reference set; arguments as for `share_at`. Labels spend settling.share of alpha."""
        kept = 1 - self.settling.share if self.settling.enabled else 1.0
        return kept * self.superiority.alpha * share_at(look, fresh)

    def settling_alpha_at(self, look: int) -> float:
        """Return the level at which labels judge the `look`-th judgement (from 1) against the same champion."""
        return self.settling.alpha_at(look, self.superiority.alpha)

    def harm_level(self, alpha: float) -> float:
        """Return the level at which a loss beyond the margin has to be excluded, at a look with this `alpha`."""
        return min(ONE_LOOK, self.non_inferiority.alpha * alpha / self.superiority.alpha)


def load_policy(raw: str | bytes) -> Policy:
    """Return the policy of a policy.toml. Raise BadPolicy, which names line, key and value."""
    try:
        text = toml_file.decode(raw, FILE)
        return Policy.model_validate(toml_file.parse(text, FILE))
    except toml_file.NotToml as error:
        raise BadPolicy(str(error)) from error
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise BadPolicy("; ".join(toml_file.explain(e, Policy, text, FILE) for e in errors)) from error
