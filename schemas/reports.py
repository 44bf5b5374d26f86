"""The report of a round: everything that a reviewer reads, and everything that the page shows.

gates/evidence_and_facts.py fills it, report/page.py renders it, a version carries it as `report.json`. It deliberately
holds no times: it is part of a hashed directory.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue

from schemas.events import Frozen
from schemas.manifests import DatasetManifest


class Verdict(StrEnum):
    """What a gate, or all gates together, concluded."""

    PASS = "pass"
    FAIL = "fail"
    INSUFFICIENT = "insufficient evidence"


class GateResult(Frozen):
    """One gate's conclusion, with what a reviewer needs to check it."""

    gate: str
    verdict: Verdict
    blocking: bool = True
    observed: float | None = None
    threshold: float | None = None
    n: int = 0
    needed: int | None = Field(default=None, description="rows that would about settle it, if evidence is short")
    interval: tuple[float, float] | None = Field(default=None, description="of `observed`, 95 %")
    sentence: str


class GateReport(Frozen):
    """Every gate of one round under one policy. `verdict` is the worst blocking result."""

    verdict: Verdict
    results: list[GateResult]
    policy_sha256: str
    policy: dict[str, dict[str, JsonValue]] = Field(default_factory=dict, description="gate -> key -> value judged by")
    policy_changes: list[str] = Field(
        default_factory=list,
        description="what differs from the policy that the round before, or this one, was judged by",
    )
    look: int = Field(
        description="how many gated rounds since the last promotion, this one included (from 1); 0: spends no evidence"
    )
    bootstrap: bool = False

    def stopped_by(self) -> list[str]:
        """Names of the blocking gates that did not pass, in order."""
        return [r.gate for r in self.results if r.blocking and r.verdict is not Verdict.PASS]


class Measure(Frozen):
    """A measure, how sure it is, and what a perfectly calibrated model of these confidences would show."""

    value: float
    low: float = Field(description="2.5th percentile of the bootstrap")
    high: float = Field(description="97.5th percentile of the bootstrap")
    null: float | None = Field(
        default=None, description="mean under the null: outcomes drawn from the model's own answers"
    )
    null_99: float | None = Field(default=None, description="99th percentile under the null")


class ReliabilityBin(Frozen):
    """Rows of similar confidence: what was said, and what was right."""

    confidence: float
    accuracy: float
    n: int


# What is shown first of measures that only some tasks have.
SHOWN = {
    "mean absolute error": "mae",
    "RMSE": "rmse",
    "R²": "r2",
    "chrF": "chrf",
    "BLEU": "bleu",
    "ROUGE-L": "rougel",
    "exact match": "exact_match",
    "perplexity": "perplexity",
}


class EvaluationReport(Frozen):
    """One artefact scored on one split. `probabilities` are calibrated; rows are in the split's order."""

    model_version: str
    split: str
    n: int
    accuracy: float | None = Field(
        default=None, description="of several labels: subset accuracy; of numbers and texts: none"
    )
    macro_f1: float | None = None
    nll: float
    brier: float | None = None
    ece: float | None = Field(
        default=None, description="15 equal-mass bins: of the top label, or of all labels' probabilities together"
    )
    ece_null_99: float | None = Field(
        default=None, description="99th percentile of the ECE that a perfectly calibrated model shows at this n"
    )
    by_slice: dict[str, dict[str, float]] = Field(default_factory=dict)
    measures: dict[str, Measure] = Field(
        default_factory=dict,
        description="accuracy, nll, brier, ece, classwise_ece, smooth_ece; of numbers mae, rmse, r2, spearman, nll, coverage_90; "
        "of texts chrf, bleu, rouge1, rouge2, rougel, exact_match, nll and perplexity of a token, confidence_auroc",
    )
    reliability: list[ReliabilityBin] = Field(
        default_factory=list,
        description="15 equal-mass bins of confidence; of numbers: what intervals claim to hold, and what they hold",
    )

    @property
    def figures(self) -> dict[str, float]:
        """What is shown first."""
        named = {"accuracy": self.accuracy, "macro F1": self.macro_f1}
        named |= {name: self.measures[key].value for name, key in SHOWN.items() if key in self.measures}
        return {name: value for name, value in {**named, "NLL": self.nll, "ECE": self.ece}.items() if value is not None}


class SliceChange(Frozen):
    """How the report's measure moved from the champion to the candidate on some of the rows."""

    name: str
    n: int
    gained: int
    lost: int
    change: float
    low: float = Field(description="95 %")
    high: float = Field(description="95 %")
    p_harm: float = Field(description="probability that it fell by more than the policy's margin")
    weighs: bool = Field(description="enough rows for a likely loss to stop the candidate")
    stops: bool


class Flip(Frozen):
    """A row that one of champion and candidate has right and the other wrong; of numbers, one whose error grew or shrank."""

    text: str
    truth: str
    champion: str
    candidate: str
    champion_confidence: float | None = None
    candidate_confidence: float | None = None


class Confusion(Frozen):
    """How often rows of one label were answered with another."""

    truth: str
    answer: str
    n: int


class LabelScore(Frozen):
    """One label's rows."""

    label: str
    n: int
    recall: float | None
    precision: float | None


class Robustness(Frozen):
    """How many answers a harmless edit changed. Edits that the tokenizer does not even see count as not changed."""

    edited: int
    flipped: int


class Lineage(Frozen):
    """What the candidate was made from."""

    base_model: str
    base_model_sha256: str
    parent_version: str | None
    method: str
    dataset_fingerprint: str
    reference_sha256: str
    code_version: str | None
    seed: int | None


class RoundReport(Frozen):
    """`report.json` of a judged round."""

    format: Literal[1] = 1
    round_id: str
    model_name: str
    task: str
    reason: str
    champion_version: str | None
    candidate_version: str
    gate_report: GateReport
    evaluations: dict[str, EvaluationReport] = Field(description="'champion', 'candidate', 'probe'")
    uncalibrated: list[ReliabilityBin] = Field(
        default_factory=list, description="the candidate's reliability before calibration"
    )
    uncalibrated_nll: float | None = None
    uncalibrated_ece: float | None = None
    calibration: dict[str, JsonValue] = Field(description="the fitted map, without the scores of prediction sets")
    set_sizes: dict[str, float] = Field(
        default_factory=dict, description="coverage -> mean labels in a prediction set, or mean width of an interval"
    )
    set_coverage: dict[str, float] = Field(
        default_factory=dict, description="coverage -> share of sets, or intervals, with the truth"
    )
    measure: str = Field(default="accuracy", description="what the changes by slice are changes of")
    slices: list[SliceChange] = Field(default_factory=list, description="without a champion there are none")
    negative_flips: list[Flip] = Field(default_factory=list, description="right before, wrong now; at most 200")
    positive_flips: list[Flip] = Field(default_factory=list, description="wrong before, right now; at most 200")
    confusion: list[Confusion] = Field(
        default_factory=list, description="wrong answers, most frequent first; at most 200"
    )
    labels: list[LabelScore] = Field(default_factory=list)
    robustness: dict[str, dict[str, Robustness]] = Field(
        default_factory=dict, description="'candidate', 'champion' -> kind of edit -> counts"
    )
    history: list[dict[str, JsonValue]] = Field(default_factory=list, description="the learning curves")
    dataset: DatasetManifest
    lineage: Lineage
