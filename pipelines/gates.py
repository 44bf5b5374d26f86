"""Turns evidence about a candidate, and a policy, into a gate report. Pure: values in, values out.

The round calls `judge`; the command line writes `DEFAULT_POLICY` to policy.toml and checks edits with `read_policy`. It
deliberately does not know files, models or the registry: what was measured is handed in.
"""

import hashlib
import tomllib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

DEFAULT_POLICY = """\
# The gates that a candidate must pass before it serves. Each says what it asks, why, and whether it blocks: a gate with
# blocking = false is measured and shown, and stops nothing. Unknown keys are refused.

[data]                      # was there enough to learn from, and could it be trusted?
blocking = true
min_rows = 8                # training rows; below it a fit says nothing
max_quarantined_share = 0.5 # of people. When most are found to contradict "everybody else", who is everybody?

[superiority]               # is the candidate more often right than the champion, on the same reference rows?
blocking = true
alpha = 0.05                # chance of promoting an equal candidate, over all rounds since the last promotion: look k
                            # is tested at alpha / (k (k + 1)), which sums to alpha (exact one-sided McNemar)

[calibration]               # can its confidence be believed?
blocking = true
alpha = 0.01                # it fails when NLL or Brier is worse than the champion's by a paired test at this level
max_ece_excess = 0.02       # ECE may lie this far above the 99th percentile that perfect calibration would show at this
                            # many rows: one temperature never fits exactly, and many rows find every small misfit

[baseline]                  # was fine-tuning worth it, against a logistic probe on the same training rows?
blocking = true
margin = 0.01               # accuracy; it fails when it is shown to be worse than the probe by more than this
alpha = 0.05

[serving]                   # does the very artefact load in a fresh process and repeat its golden outputs?
blocking = true
max_latency_ms = 1000.0     # one text, one thread, median; generous, because it guards against a mistake, not a budget

[bootstrap]                 # the first champion has nothing to beat; it must know more than the most frequent label
blocking = true
alpha = 0.05                # one-sided exact binomial test against that label's share. Too few rows to tell: advisory
max_ece = 0.25              # a floor: few seed rows calibrate badly, and yet something must serve before it can learn
"""


class PolicyError(ValueError):
    """A policy has an unknown key or a bad value; the message names it."""


class _Gate(BaseModel):
    """One table of the policy."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    blocking: bool = True


class DataPolicy(_Gate):
    """Enough rows, from people who can be trusted."""

    min_rows: int = Field(8, ge=1)
    max_quarantined_share: float = Field(0.5, ge=0, le=1)


class SuperiorityPolicy(_Gate):
    """More often right than the champion."""

    alpha: float = Field(0.05, gt=0, lt=0.5)


class CalibrationPolicy(_Gate):
    """Confidence that can be believed."""

    alpha: float = Field(0.01, gt=0, lt=0.5)
    max_ece_excess: float = Field(0.02, ge=0, le=1)


class BaselinePolicy(_Gate):
    """Not worse than the logistic probe."""

    margin: float = Field(0.01, ge=0, lt=1)
    alpha: float = Field(0.05, gt=0, lt=0.5)


class ServingPolicy(_Gate):
    """Loads and repeats its golden outputs."""

    max_latency_ms: float = Field(1000.0, gt=0)


class BootstrapPolicy(_Gate):
    """Floors for the first champion."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    max_ece: float = Field(0.25, gt=0, le=1)


class Policy(BaseModel):
    """Every gate's thresholds, and the hash of the text that they were read from."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    data: DataPolicy = DataPolicy()
    superiority: SuperiorityPolicy = SuperiorityPolicy()
    calibration: CalibrationPolicy = CalibrationPolicy()
    baseline: BaselinePolicy = BaselinePolicy()
    serving: ServingPolicy = ServingPolicy()
    bootstrap: BootstrapPolicy = BootstrapPolicy()
    sha256: str


def read_policy(text: str) -> Policy:
    """A policy from the text of policy.toml; what it leaves out has the default.

    Raises:
        PolicyError: not TOML, an unknown key or a bad value.

    """
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"policy.toml is not TOML: {error}") from error
    if "sha256" in tree:
        raise PolicyError("policy.toml: unknown key sha256")
    try:
        return Policy(**tree, sha256=hashlib.sha256(text.encode()).hexdigest())
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise PolicyError("policy.toml: " + "; ".join(problems)) from error
