"""The report of a round: gate results, evaluations, slices, flips and lineage.

pipelines/report/round_report.py builds it, page.py renders it, and a version contains it as `report.json`. It holds no times,
because it is part of a hashed folder.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue

from schemas.events import Frozen
from schemas.manifests import DatasetManifest


class Verdict(StrEnum):
    """The result of a gate, or of all gates together."""

    PASS = "pass"
    FAIL = "fail"
    INSUFFICIENT = "insufficient evidence"


class GateResult(Frozen):
    """The result of one gate, with the values that it compared."""

    gate: str
    verdict: Verdict
    blocking: bool = True
    observed: float | None = None
    threshold: float | None = None
    n: int = 0
    needed: int | None = Field(
        default=None, description="with insufficient evidence: approximate number of rows that would settle it"
    )
    p: float | None = Field(default=None, description="p-value, where the gate is a test against an alpha")
    interval: tuple[float, float] | None = Field(default=None, description="95 % interval of `observed`")
    sentence: str


class GateReport(Frozen):
    """Every gate of one round under one policy. `verdict` is the worst blocking result."""

    verdict: Verdict
    results: list[GateResult]
    policy_sha256: str
    policy: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict, description="gate -> key -> value that was applied"
    )
    policy_changes: list[str] = Field(
        default_factory=list,
        description="values that differ from the policy of the previous judgement",
    )
    look: int = Field(description="number of this look at the champion version; 0: this round spends no alpha")
    alpha: float | None = Field(default=None, description="level that this look spends on the test of a gain")
    p: float | None = Field(default=None, description="p-value of the test of a gain")
    fresh_rows: int = Field(
        default=0, description="reference rows on which this champion was judged for the first time"
    )
    bootstrap: bool = False
    advice: list[str] = Field(
        default_factory=list, description="what the reference set can show, and what would help; stops nothing"
    )
    reference_p: float | None = Field(
        default=None,
        description="one-sided p-value of the candidate's accuracy against the champion's on the reference set, for labels that "
        "settle the round; None without a champion, for other tasks, and where data.min_judge_rows is not reached",
    )

    def stopped_by(self) -> list[str]:
        """Return the names of the blocking gates that did not pass, in order."""
        return [r.gate for r in self.results if r.blocking and r.verdict is not Verdict.PASS]


class Measure(Frozen):
    """A metric with its bootstrap interval, and its value for a perfectly calibrated model with these confidences."""

    value: float
    low: float = Field(description="2.5th percentile of the bootstrap")
    high: float = Field(description="97.5th percentile of the bootstrap")
    null: float | None = Field(
        default=None, description="mean under the null: outcomes drawn from the model's own probabilities"
    )
    null_99: float | None = Field(default=None, description="99th percentile under the null")


class ReliabilityBin(Frozen):
    """Rows of similar confidence: mean confidence and accuracy."""

    confidence: float
    accuracy: float
    n: int


# Main metrics that only some tasks have: shown name -> key.
SHOWN = {
    "micro F1": "micro_f1",
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
    """One artefact's calibrated metrics on one split."""

    model_version: str
    split: str
    n: int
    accuracy: float | None = Field(
        default=None, description="multilabel: subset accuracy; regression and generation: none"
    )
    macro_f1: float | None = None
    nll: float
    brier: float | None = None
    ece: float | None = Field(
        default=None, description="15 equal-mass bins; of the top label, multilabel: of all labels' probabilities"
    )
    ece_null_99: float | None = Field(
        default=None, description="99th percentile of a perfectly calibrated model's ECE on n rows"
    )
    by_slice: dict[str, dict[str, float]] = Field(default_factory=dict)
    measures: dict[str, Measure] = Field(
        default_factory=dict,
        description="accuracy, nll, brier, ece, classwise_ece, smooth_ece; regression: mae, rmse, r2, spearman, nll, "
        "coverage_90; generation: chrf, bleu, rouge1, rouge2, rougel, exact_match, token nll and perplexity, confidence_auroc",
    )
    reliability: list[ReliabilityBin] = Field(
        default_factory=list,
        description="15 equal-mass bins of confidence; regression: nominal and actual coverage of intervals",
    )

    @property
    def figures(self) -> dict[str, float]:
        """Return the main metrics by their shown names."""
        named = {"accuracy": self.accuracy, "macro F1": self.macro_f1}
        named |= {name: self.measures[key].value for name, key in SHOWN.items() if key in self.measures}
        return {name: value for name, value in {**named, "NLL": self.nll, "ECE": self.ece}.items() if value is not None}


class SliceChange(Frozen):
    """The change of the report's metric from champion to candidate on one slice."""

    name: str
    n: int
    gained: int
    lost: int
    change: float
    low: float = Field(description="95 %")
    high: float = Field(description="95 %")
    p_harm: float = Field(description="probability that the metric fell by more than the policy's margin")
    weighs: bool = Field(description="the slice has enough rows for a likely loss to stop the candidate")
    stops: bool


class Flip(Frozen):
    """A row that only one of champion and candidate answers correctly; regression: a row whose error changed."""

    text: str
    truth: str
    champion: str
    candidate: str
    champion_confidence: float | None = None
    candidate_confidence: float | None = None


class Confusion(Frozen):
    """The number of rows of one label that were predicted as another."""

    truth: str
    answer: str
    n: int


class LabelScore(Frozen):
    """Recall and precision of one label."""

    label: str
    n: int
    recall: float | None
    precision: float | None


class Robustness(Frozen):
    """Answers that a harmless edit changed, of those whose tokens it changed."""

    edited: int
    flipped: int


class Lineage(Frozen):
    """The inputs that the candidate was made from."""

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
    evaluations: dict[str, EvaluationReport] = Field(
        description="'champion', 'candidate', and the baselines: 'probe', 'tfidf' or, for generation, 'untrained'"
    )
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
        default_factory=dict, description="coverage -> share of sets, or intervals, that contain the truth"
    )
    measure: str = Field(default="accuracy", description="metric of the changes by slice")
    slices: list[SliceChange] = Field(default_factory=list, description="empty without a champion")
    negative_flips: list[Flip] = Field(default_factory=list, description="champion right, candidate wrong; at most 200")
    positive_flips: list[Flip] = Field(default_factory=list, description="champion wrong, candidate right; at most 200")
    moved_answers: float | None = Field(
        default=None, description="share of the reference rows that champion and candidate answer differently"
    )
    confusion: list[Confusion] = Field(
        default_factory=list, description="wrong predictions, most frequent first; at most 200"
    )
    labels: list[LabelScore] = Field(default_factory=list)
    robustness: dict[str, dict[str, Robustness]] = Field(
        default_factory=dict, description="'candidate', 'champion' -> kind of edit -> counts"
    )
    history: list[dict[str, JsonValue]] = Field(default_factory=list, description="the learning curves")
    dataset: DatasetManifest
    lineage: Lineage
