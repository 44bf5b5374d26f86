"""The policy: every threshold of the gates, with its reason, as a file that travels with the round.

Turns the text of `policy.toml` into a `Policy`, and two policies into the list of what changed between them. `ratchet init`
writes `default_policy`; training_round.py loads it; the gates read it. It deliberately judges nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from string import Template
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas import toml_file
from schemas.targets import Task

FILE = "policy.toml"

_TEMPLATE = """# The gates: thresholds, and why. A gate with blocking = false only advises.
# Every report holds the values it was judged by, and names each one that differs from the round before.

[data]
blocking = true
# Fewer rows than this on the judging side of the reference cannot tell a better model from luck.
min_judge_rows = 100
# A round whose feedback is mostly quarantined is an attack or a bug, and somebody should look.
max_quarantined_people_share = 0.5
# A judging row that trained is no evidence. There is no good reason for one.
max_leaked_rows = 0
# Population stability index of the labels, where it was computed: above 0.25 is called a major shift. Only said, never a veto:
# a shift is what rounds are for.
max_drift = 0.25

[superiority]
blocking = true
# accuracy: exact one-sided McNemar. nll or brier: paired test, which sees more with the same rows. macro_f1: paired bootstrap.
# Several labels are right if all are. Of numbers it is a paired test on NLL, or for any other metric on the squared error; of
# texts on the NLL of the reference's tokens, or else on chrF.
metric = "$metric"
# The k-th look since the last promotion gets alpha / (k (k + 1)), so that all looks together stay below alpha.
alpha = 0.05

[non_inferiority]
blocking = true
# Accuracy may be lower than the champion's by less than this, with 95 % confidence; of numbers, the squared error larger by less
# than this share; of texts, chrF lower. Implied by superiority in accuracy; it is what holds accuracy when superiority is judged
# by another metric.
margin = $margin

[slices]
blocking = true
# A slice is a metadata value, or a label. It stops a candidate when a loss of more than `margin` there is likelier than `likely`.
margin = $margin
likely = 0.8
# A slice with fewer rows only advises, because ten of them would stop every second equal candidate, unless the loss is beyond
# doubt: shown at `alpha` after Holm's correction over all slices.
min_rows = 200
alpha = 0.05

[flips]
blocking = true
# Rows that the champion has right and the candidate wrong, as a share of all: more than this, shown at 95 %, unsettles people
# even if more rows got better. The rows of gates.must_pass have to be right, all of them.
max_share = 0.1

[calibration]
blocking = true
# A candidate as calibrated and as good as the champion is stopped this often by mean confidence, NLL, Brier score and coverage
# together.
alpha = 0.01
# ECE may not pass the 99th percentile of what a perfectly calibrated model shows at this n, unless it is below this anyway.
ece_floor = 0.02
# The prediction sets at this coverage have to hold the truth as often as they say.
coverage = 0.95

[forgetting]
blocking = true
# Labels without any of the newest `recent_rows` feedback rows, taken together, are judged as one slice is.
recent_rows = 500

[robustness]
blocking = true
# Typos, case, white space and padding may change the answer of at most this share of edited texts, or of the champion's share.
# A written answer counts as changed if its tokens become less than half as likely.
max_flips = 0.1
# Rows that are edited, each in every way; the first ones of the reference in a fixed random order.
rows = $edited

[baseline]
blocking = true
# A round that loses to a logistic probe on frozen embeddings by more than this share of rows has no reason to exist; nor one
# that writes worse (chrF) than the answer of the most similar training row.
margin = $margin

[serving]
blocking = true
# The artefact, loaded in a fresh process, has to answer one text within this time (milliseconds, median), and take no more
# memory (of the whole process) or disk than this (MB).
max_latency_ms = $latency
max_memory_mb = 4000
max_size_mb = 4000

[bootstrap]
blocking = true
# Without a champion there is nothing to compare with: the first one has to beat always giving the commonest answer.
min_gain_over_majority = 0.02

[compressed]
blocking = true
# A smaller artefact (int8, distilled) against the full-precision model of the same round, on the same rows: the same answer
# on at least this share of rows, accuracy and NLL not worse by more than the margins, with 95 % confidence.
min_agreement = 0.985
# A distilled student is another model: it errs elsewhere, and need not err more often.
min_student_agreement = 0.95
accuracy_margin = 0.02
nll_margin = 0.02
"""

_VALUES = {"metric": "accuracy", "margin": "0.01", "edited": "500", "latency": "500"}
# Written texts vary more from model to model than labels do: on 200 rows chrF is known to about 0.03. They take seconds.
_OF_TEXT = {"metric": "nll", "margin": "0.05", "edited": "25", "latency": "30000"}


def default_policy(task: Task) -> str:
    """The policy.toml that a project of this task begins with."""
    return Template(_TEMPLATE).substitute(_OF_TEXT if task == "generation" else _VALUES)


DEFAULT_POLICY = default_policy("classification")


class BadPolicy(ValueError):
    """policy.toml has an unknown key or a bad value."""


class _Gate(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    blocking: bool = True


class DataPolicy(_Gate):
    """Enough fair evidence, none of it trained on, and feedback that is not mostly quarantined."""

    min_judge_rows: int = Field(100, ge=0)
    max_quarantined_people_share: float = Field(0.5, ge=0, le=1)
    max_leaked_rows: int = Field(0, ge=0)
    max_drift: float = Field(0.25, gt=0)


class SuperiorityPolicy(_Gate):
    """A metric and the level that all looks share."""

    metric: Literal["accuracy", "nll", "brier", "macro_f1"] = "accuracy"
    alpha: float = Field(0.05, gt=0, lt=1)


class MarginPolicy(_Gate):
    """A margin in accuracy."""

    margin: float = Field(0.01, ge=0, le=1)


class SlicesPolicy(MarginPolicy):
    """How likely a loss beyond the margin stops a candidate, and from how many rows on."""

    likely: float = Field(0.8, gt=0, lt=1)
    min_rows: int = Field(200, ge=1)
    alpha: float = Field(0.05, gt=0, lt=1)


class FlipsPolicy(_Gate):
    """Answers that were right and no longer are."""

    max_share: float = Field(0.1, ge=0, le=1)


class CalibrationPolicy(_Gate):
    """A level for the tests, a floor under ECE, and the coverage at which sets are checked."""

    alpha: float = Field(0.01, gt=0, lt=1)
    ece_floor: float = Field(0.02, ge=0, le=1)
    coverage: float = Field(0.95, gt=0, lt=1)


class ForgettingPolicy(_Gate):
    """How far back recent feedback reaches."""

    recent_rows: int = Field(500, ge=1)


class RobustnessPolicy(_Gate):
    """A bound on answers that harmless edits change."""

    max_flips: float = Field(0.1, ge=0, le=1)
    rows: int = Field(500, ge=0)


class ServingPolicy(_Gate):
    """Bounds on what the artefact costs on this machine."""

    max_latency_ms: float = Field(500, gt=0)
    max_memory_mb: float = Field(4000, gt=0)
    max_size_mb: float = Field(4000, gt=0)


class BootstrapPolicy(_Gate):
    """A floor for the first champion."""

    min_gain_over_majority: float = Field(0.02, ge=0, le=1)


class CompressedPolicy(_Gate):
    """How far a compressed artefact may be from the full-precision model."""

    min_agreement: float = Field(0.985, ge=0, le=1)
    min_student_agreement: float = Field(0.95, ge=0, le=1)
    accuracy_margin: float = Field(0.02, gt=0, le=1)
    nll_margin: float = Field(0.02, gt=0)


class Policy(BaseModel):
    """policy.toml."""

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
        """Of the values: comments and defaults that are spelt out change nothing."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()

    def values(self) -> dict[str, dict[str, Any]]:
        """gate -> key -> value, all of them."""
        found: dict[str, dict[str, Any]] = self.model_dump(mode="json")
        return found

    def alpha_at(self, look: int) -> float:
        """What the `look`-th look (from 1) since the last promotion may spend: the shares add up to alpha."""
        return self.superiority.alpha / (look * (look + 1))


def load_policy(raw: str | bytes) -> Policy:
    """The policy of a policy.toml. Raises BadPolicy, which names line, key and value."""
    try:
        text = toml_file.decode(raw, FILE)
        return Policy.model_validate(toml_file.parse(text, FILE))
    except toml_file.NotToml as error:
        raise BadPolicy(str(error)) from error
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise BadPolicy("; ".join(toml_file.explain(e, Policy, text, FILE) for e in found)) from error


def changes(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs between two policies' `values`, one line each: "superiority.alpha: 0.05 -> 0.2"."""
    found = []
    for gate in sorted(before.keys() | after.keys()):
        old, new = before.get(gate, {}), after.get(gate, {})
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                found.append(f"{gate}.{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}")
    return found
