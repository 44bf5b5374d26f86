"""Manifests: what lies on disk beside a dataset and inside a model version.

Pipelines write them, serving and the command line read them, as JSON. They hold no times, because they are part of hashed
folders.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.events import Frozen

MANIFEST_FORMAT: Literal[1] = 1


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
