"""The policy: every threshold of the gates, in a file that is stored with the round.

Turns the text of `policy.toml` into a `Policy`, and two policies into a list of changes. `ratchet init` writes
`default_policy`, training_round.py loads the file, and the gates read the `Policy`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas import toml_file
from schemas.targets import Task

FILE = "policy.toml"

_TEMPLATE = """# Thresholds of the gates. A gate with blocking = false only advises.
# Every report shows the values that it was judged by, and each value that changed since the round before.

[data]
blocking = true
# The smallest reference set. With fewer rows, a better model cannot be told from chance.
min_judge_rows = 100
# The largest share of people in quarantine. More of them points to an attack or a bug.
max_quarantined_people_share = 0.5
# Reference rows that may also be training rows. There is no good reason for one.
max_leaked_rows = 0
# The largest population stability index of the labels; above 0.25 is called a major shift. It only advises: rounds exist to
# follow shifts.
max_drift = 0.25

[superiority]
blocking = true
# The metric that has to improve:
#   accuracy   exact one-sided McNemar test; a multilabel row is right if all its labels are
#   nll, brier paired test, which detects more with the same rows
#   macro_f1   paired bootstrap
# Regression has nll; any other value means the mean squared error. Generation has nll, per token of the reference answer; any
# other value means chrF.
metric = "$metric"
# The k-th round since the last promotion may spend alpha / (k (k + 1)). All rounds together stay below alpha.
alpha = 0.05

[non_inferiority]
blocking = true
# The main metric may be lower than the champion's by less than this, with 95 % confidence. The main metric is accuracy; for
# regression, the relative change of the mean squared error; for generation, chrF. Superiority in the main metric implies it.
margin = $margin

[slices]
blocking = true
# A slice is a metadata value or a label. It stops a candidate if a loss of more than `margin` has a probability above `likely`.
margin = $margin
likely = 0.8
# A slice with fewer rows only advises: ten small slices would stop every second candidate that is equal to the champion. It
# still stops a candidate if the loss is significant at `alpha`, with Holm's correction over all slices.
min_rows = 200
alpha = 0.05

[flips]
blocking = true
# The largest share of rows that the champion has right and the candidate wrong, at 95 % confidence. People notice such rows,
# even if more rows improved. All rows of gates.must_pass have to be right.
max_share = 0.1

[calibration]
blocking = true
# How often a candidate that is as calibrated and as good as the champion is stopped by mean confidence, NLL, Brier score and
# coverage together.
alpha = 0.01
# ECE has to stay below the 99th percentile of a perfectly calibrated model at this number of rows, or below this value.
ece_floor = 0.02
# The coverage at which prediction sets or intervals are checked.
coverage = 0.95

[forgetting]
blocking = true
# Labels that are missing from the newest `recent_rows` feedback rows are judged together, as one slice.
recent_rows = 500

[robustness]
blocking = true
# The largest share of predictions that typos, case, white space and padding may change; the champion's share, if that is
# larger. A generated text counts as changed if its tokens become less than half as likely.
max_flips = 0.1
# How many reference rows are edited, each in every way. Every round takes the same rows.
rows = $edited

[baseline]
blocking = true
# The candidate may be worse than a cheap baseline by at most this. The baseline is a logistic probe on frozen embeddings; for
# generation, the answer of the most similar training row (chrF).
margin = $margin

[serving]
blocking = true
# Limits of the artefact in a fresh process: median time for one text (milliseconds), memory of the whole process and size on
# disk (MB).
max_latency_ms = $latency
max_memory_mb = 4000
max_size_mb = 4000

[bootstrap]
blocking = true
# The first model has no champion to beat. It has to beat a constant prediction by this.
min_gain_over_majority = 0.02

[compressed]
blocking = true
# A compressed artefact (int8) against the full-precision model of the same round, on the same rows: the smallest share of equal
# predictions, and by how much accuracy and NLL may be worse, with 95 % confidence.
min_agreement = 0.985
# The same share for a distilled student: another model, whose errors may differ without being more.
min_student_agreement = 0.95
accuracy_margin = 0.02
nll_margin = 0.02
"""

_VALUES = {"metric": "accuracy", "margin": "0.01", "edited": "500", "latency": "500"}
# Generated texts vary more between models than labels do: 200 rows give chrF to about 0.03. A text takes seconds.
_GENERATION_VALUES = {"metric": "nll", "margin": "0.05", "edited": "25", "latency": "30000"}


def default_policy(task: Task) -> str:
    """Return the text of policy.toml for a new project of this task."""
    return Template(_TEMPLATE).substitute(_GENERATION_VALUES if task == "generation" else _VALUES)


DEFAULT_POLICY = default_policy("classification")


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
    """Metric, and the significance level that all looks share; `metric_of_task` maps the metric to a task's."""

    metric: Literal["accuracy", "nll", "brier", "macro_f1"] = "accuracy"
    alpha: float = Field(0.05, gt=0, lt=1)


class MarginPolicy(_Gate):
    """Margin in the task's main metric."""

    margin: float = Field(0.01, ge=0, le=1)


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
    non_inferiority: MarginPolicy = MarginPolicy()
    slices: SlicesPolicy = SlicesPolicy()
    flips: FlipsPolicy = FlipsPolicy()
    calibration: CalibrationPolicy = CalibrationPolicy()
    forgetting: ForgettingPolicy = ForgettingPolicy()
    robustness: RobustnessPolicy = RobustnessPolicy()
    baseline: MarginPolicy = MarginPolicy()
    serving: ServingPolicy = ServingPolicy()
    bootstrap: BootstrapPolicy = BootstrapPolicy()
    compressed: CompressedPolicy = CompressedPolicy()

    @property
    def sha256(self) -> str:
        """Return the hash of the values; comments and explicit defaults don't change it."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()

    def values(self) -> dict[str, dict[str, Any]]:
        """Return all values: gate -> key -> value."""
        values: dict[str, dict[str, Any]] = self.model_dump(mode="json")
        return values

    def alpha_at(self, look: int) -> float:
        """Return the level of the `look`-th look (from 1) since the last promotion; all levels add up to alpha."""
        return self.superiority.alpha / (look * (look + 1))


def metric_of_task(metric: str, available: Sequence[str]) -> str:
    """Return the metric that `superiority.metric` of policy.toml means for a task with these metrics, the main one first.

    policy.toml has the same metric names for all tasks, and `ratchet init` writes "accuracy" for regression too. A name that the
    task lacks therefore means its main metric.
    """
    return metric if metric in available else available[0]


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


def changes(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the differences between two policies' `values`, one line each: "superiority.alpha: 0.05 -> 0.2"."""
    lines = []
    for gate in sorted(before.keys() | after.keys()):
        old, new = before.get(gate, {}), after.get(gate, {})
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                lines.append(f"{gate}.{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}")
    return lines
