"""What a round leaves behind: manifests, reports, and the records that the registry keeps of them.

Pipelines write these, serving and the command line read them; all of them are JSON on disk or in the registry.
They deliberately do not know how they are stored. Times live in records, never in hashed files.
"""

from enum import StrEnum
from typing import Literal, Self

from pydantic import AwareDatetime, Field, JsonValue, model_validator

from schemas.events import Frozen

MANIFEST_FORMAT: Literal[1] = 1


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


class DatasetManifest(Frozen):
    """Where every row went: what came in is what is kept, on some side, and what was dropped, for some reason."""

    fingerprint: str = Field(description="SHA-256 over the sorted training and validation rows")
    cut: dict[str, int] = Field(description="last offset read, by '<topic_id>/<partition>'")
    labels: list[str]
    rows_in: int
    rows_train: int
    rows_validation: int
    rows_rejections: int = Field(0, description="rows that train as what their text is not")
    rows_held_out: int = Field(0, description="rows of files that calibrate or judge beside the reference")
    rows_audit: int = Field(0, description="rows of the audit sample, which never trains")
    rows_by_source: dict[str, int]
    rows_by_label: dict[str, int]
    dropped: dict[str, int] = Field(description="reason -> rows")
    dropped_examples: dict[str, str] = Field(default_factory=dict, description="reason -> one example")
    quarantined_people: list[str] = Field(default_factory=list)
    reference_rows: int = Field(description="rows that judge, held-out ones included")
    reference_calibration_rows: int
    reference_dropped: dict[str, int] = Field(default_factory=dict, description="reason -> rows of the reference file")
    reference_sha256: str

    @property
    def rows_kept(self) -> int:
        """Rows in use, on whatever side."""
        return self.rows_train + self.rows_validation + self.rows_rejections + self.rows_held_out + self.rows_audit

    @model_validator(mode="after")
    def _accounts_for_every_row(self) -> Self:
        dropped = sum(self.dropped.values())
        if self.rows_in != self.rows_kept + dropped:
            raise ValueError(f"{self.rows_in} rows in, but {self.rows_kept} kept and {dropped} dropped")
        return self


class Drift(Frozen):
    """How far a dataset's training rows are from other rows. None where there was nothing to compare."""

    against: str
    rows: int
    psi: float | None = Field(description="population stability index of the labels; above 0.25 is a shift")
    chi2_p: float | None = Field(description="p-value of the chi-squared test of equal label shares")
    embedding_distance: float | None = Field(description="1 - cosine of the mean embeddings of a sample")
    two_sample_accuracy: float | None = Field(description="of a classifier that tells them apart; 0.5 is no difference")
    two_sample_p: float | None = Field(description="one-sided binomial p-value of that accuracy")


class DatasetProfile(Frozen):
    """What a dataset looks like."""

    rows_by_side: dict[str, int]
    rows_by_label: dict[str, dict[str, int]] = Field(description="label -> side -> rows")
    rows_by_source: dict[str, int]
    missing_labels: list[str] = Field(description="labels of the taxonomy without a training row")
    people: int
    largest_person_share: float = Field(description="share of the training rows that came from one person, at most")
    slices: dict[str, int] = Field(description="metadata 'key=value' -> training rows, the largest first")
    smallest_slice: str | None
    characters: dict[str, float] = Field(description="quantiles of the training texts' lengths")
    token_edges: list[int] = Field(description="histogram of the tokens of a sample of training texts: edges")
    token_counts: list[int] = Field(description="and rows between them")
    cut_share: float = Field(description="share of these that is cut to model.max_length")
    drift: list[Drift]


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


class Conformal(Frozen):
    """Split-conformal prediction sets: nonconformity scores of rows that were not trained on, ascending."""

    method: Literal["lac", "aps"] = Field(
        default="lac", description="lac: 1 - p(truth), the smallest sets; aps: probability above the truth"
    )
    scores: list[float] = Field(default_factory=list)


class IntervalCalibration(Frozen):
    """Regression: a factor on the claimed spread, and the normalised errors that intervals are cut from, ascending."""

    factor: float = Field(default=1.0, gt=0)
    scores: list[float] = Field(default_factory=list)
    fitted_rows: int = 0
    nll_before: float | None = None
    nll_after: float | None = None


class SequenceCalibration(Frozen):
    """Generation: confidence is sigmoid(scale * mean token log-probability + shift), or its exponential if not fitted."""

    kind: Literal["none", "platt"] = "none"
    scale: float = 1.0
    shift: float = 0.0
    fitted_rows: int = 0


class Calibration(Frozen):
    """A fitted calibration map over logits, chosen by cross-validated NLL, and the scores of its prediction sets or intervals.

    none: softmax(logits). temperature: softmax(logits / temperature). vector: softmax(scale * logits + shift).
    platt, isotonic: for two labels; the second one's probability is a sigmoid, or a monotone line through knots, of the
    difference of logits. In multilabel models a sigmoid stands in place of softmax; numbers have no map.
    """

    kind: Literal["none", "temperature", "vector", "platt", "isotonic"] = "none"
    temperature: float = Field(default=1.0, gt=0)
    scale: list[float] = Field(default_factory=list, description="vector: one a label; platt: one")
    shift: list[float] = Field(default_factory=list, description="vector: one a label; platt: one")
    knots: list[tuple[float, float]] = Field(
        default_factory=list, description="isotonic: difference of logits, ascending, and probability"
    )
    fitted_rows: int = 0
    nll_before: float | None = None
    nll_after: float | None = None
    held_out_nll: dict[str, float] = Field(default_factory=dict, description="kind -> cross-validated NLL")
    conformal: Conformal | None = None
    intervals: IntervalCalibration | None = Field(default=None, description="regression")
    sequence: SequenceCalibration | None = Field(default=None, description="generation")


class Golden(Frozen):
    """Inputs with the calibrated outputs (probabilities, or a number) that the artefact gave when it was made."""

    texts: list[str]
    probabilities: list[list[float]]
    sets: list[list[int]] = Field(
        default_factory=list, description="columns in the prediction set at 90 % of each of `probabilities`"
    )
    completions: list[list[int]] = Field(
        default_factory=list, description="generation: the tokens that each text was answered with, greedily"
    )
    logprobs: list[list[float]] = Field(
        default_factory=list, description="generation: log-probabilities of these tokens"
    )
    tolerance: float = 1e-3


class ModelManifest(Frozen):
    """`manifest.json` of a model version: written last, with the SHA-256 of every other file of the directory."""

    format: Literal[1] = MANIFEST_FORMAT
    model_version: str
    model_name: str
    task: str
    labels: list[str]
    untaught_labels: list[str] = Field(
        default_factory=list,
        description="those of them that no row has taught, here or in a version that this one went on from",
    )
    base_model: str
    base_model_sha256: str
    max_length: int
    max_new_tokens: int = Field(default=128, description="generation: tokens of an answer, at most")
    parent_version: str | None
    round_id: str
    dataset_fingerprint: str
    method: str
    artifact: str = Field(default="fp32", description="how the served model was made: fp32, int8, student-int8 or bf16")
    seed: int | None = None
    code_version: str | None = None
    calibration: Calibration
    golden: Golden
    files: dict[str, str] = Field(description="relative path -> SHA-256")


class RoundState(StrEnum):
    """Where a round is. The last five are final."""

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
    """How a training is going at a moment."""

    loss: float | None = Field(default=None, description="of the last step")
    tokens_per_s: float | None = None
    eta_s: float | None = Field(default=None, description="seconds to the end of training at most, as it goes now")

    def __str__(self) -> str:
        parts = [
            "" if self.loss is None else f"loss {self.loss:.3f}",
            "" if self.tokens_per_s is None else f"{self.tokens_per_s:,.0f} tokens/s",
            "" if self.eta_s is None else f"{self.eta_s:.0f} s left",
        ]
        return ", ".join(part for part in parts if part)


class RoundRecord(Frozen):
    """A round as the registry knows it."""

    round_id: str
    model_name: str
    state: RoundState
    step: str | None = Field(default=None, description="the step it is in, or was in when it ended")
    progress: float | None = Field(default=None, ge=0, le=1)
    pace: Pace | None = Field(default=None, description="while it trains")
    reason: str = Field(description="why it was triggered")
    cut: dict[str, int] = Field(default_factory=dict)
    champion_version: str | None = Field(default=None, description="the version it is gated against")
    candidate_version: str | None = None
    gate_report: GateReport | None = None
    evaluations: dict[str, EvaluationReport] = Field(
        default_factory=dict, description="'champion', 'candidate', 'probe'"
    )
    dataset: DatasetManifest | None = None
    detail: str | None = Field(default=None, description="why it ended as it did, in one sentence")
    attempts: int = 0
    interruptions: int = Field(default=0, description="attempts that `ratchet up` ended as it was stopped: no failures")
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    heartbeat_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None


class VersionRecord(Frozen):
    """A model version as the registry knows it."""

    model_version: str
    digest: str = Field(description="SHA-256 of its manifest.json: its address in the artefact store")
    parent_version: str | None
    round_id: str
    created_at: AwareDatetime
    servable: bool = Field(description="its gates passed, or a named person approved it")
    approved_by: str | None = None


class Champion(Frozen):
    """The champion pointer."""

    model_version: str
    digest: str
    generation: int
    promoted_at: AwareDatetime
    round_id: str | None
    actor: str


class WorkerHeartbeat(Frozen):
    """What one serving worker last said of itself."""

    worker: str = Field(description="its process id, as text")
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
