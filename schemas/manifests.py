"""Manifests: JSON files beside a dataset and inside a model version.

Pipelines write them; serving and the command line read them. They hold no times, because they are part of hashed folders.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.events import Frozen

MANIFEST_FORMAT: Literal[1] = 1


class DatasetManifest(Frozen):
    """A round's dataset: rows in = rows kept by side + rows dropped by reason."""

    fingerprint: str = Field(description="SHA-256 over the sorted training and validation rows")
    given_sha256: str | None = Field(
        None, description="the same over the rows that files and people gave, without answers that nobody challenged"
    )
    cut: dict[str, int] = Field(description="'<topic_id>/<partition>' -> last offset read")
    labels: list[str]
    rows_in: int
    rows_train: int
    rows_validation: int
    rows_rejections: int = Field(0, description="rows that train as complementary labels (thumbs-down)")
    rows_held_out: int = Field(0, description="rows of files added to the reference set")
    rows_audit: int = Field(
        0, description="rows of the audit sample, of datasets built before people labelled it in the queue"
    )
    rows_by_source: dict[str, int]
    rows_by_label: dict[str, int]
    dropped: dict[str, int] = Field(description="reason -> rows")
    dropped_examples: dict[str, str] = Field(default_factory=dict, description="reason -> one example")
    quarantined_people: list[str] = Field(default_factory=list)
    reference_rows: int = Field(description="rows of the reference set, held-out ones included")
    reference_calibration_rows: int
    reference_dropped: dict[str, int] = Field(default_factory=dict, description="reason -> rows of the reference file")
    reference_sha256: str

    @property
    def rows_kept(self) -> int:
        """Return the number of rows in use, on all sides."""
        return self.rows_train + self.rows_validation + self.rows_rejections + self.rows_held_out + self.rows_audit

    @model_validator(mode="after")
    def _accounts_for_every_row(self) -> Self:
        dropped = sum(self.dropped.values())
        if self.rows_in != self.rows_kept + dropped:
            raise ValueError(f"{self.rows_in} rows in, but {self.rows_kept} kept and {dropped} dropped")
        return self


class Drift(Frozen):
    """Drift of a dataset's training rows from other rows. None where there was nothing to compare."""

    against: str
    rows: int
    psi: float | None = Field(description="population stability index of the labels; above 0.25 is a shift")
    chi2_p: float | None = Field(description="p-value of the chi-squared test of equal label shares")
    embedding_distance: float | None = Field(description="1 - cosine of the mean embeddings of a sample")
    two_sample_accuracy: float | None = Field(
        description="accuracy of a classifier that separates them; 0.5 is no difference"
    )
    two_sample_p: float | None = Field(description="one-sided binomial p-value of that accuracy")


class DatasetProfile(Frozen):
    """Summary statistics of a dataset."""

    rows_by_side: dict[str, int]
    rows_by_label: dict[str, dict[str, int]] = Field(description="label -> side -> rows")
    rows_by_source: dict[str, int]
    missing_labels: list[str] = Field(description="labels of the taxonomy without a training row")
    people: int
    largest_person_share: float = Field(description="largest share of the training rows that came from one person")
    slices: dict[str, int] = Field(description="metadata 'key=value' -> training rows, the largest first")
    smallest_slice: str | None
    characters: dict[str, float] = Field(description="quantiles of the training texts' lengths")
    token_edges: list[int] = Field(description="edges of a histogram of tokens a text, over a sample of training texts")
    token_counts: list[int] = Field(description="rows between these edges")
    cut_share: float = Field(description="share of the sample that is truncated to model.max_length")
    drift: list[Drift]


class Conformal(Frozen):
    """Split-conformal prediction sets: nonconformity scores of held-out rows, ascending."""

    method: Literal["lac", "aps"] = Field(
        default="lac", description="lac: 1 - p(truth), the smallest sets; aps: probability above the truth"
    )
    scores: list[float] = Field(default_factory=list)


class IntervalCalibration(Frozen):
    """Regression: a factor on the predicted spread, and the normalised errors whose quantiles bound intervals, ascending."""

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
    """A fitted calibration map over logits, and the scores of prediction sets or intervals.

    none: softmax(logits). temperature: softmax(logits / temperature). vector: softmax(scale * logits + shift).
    platt, isotonic: for two labels; the second one's probability is a sigmoid of the difference of logits, or a monotone
    line through knots. Multilabel models use a sigmoid instead of softmax; regression has no map.
    """

    kind: Literal["none", "temperature", "vector", "platt", "isotonic"] = "none"
    temperature: float = Field(default=1.0, gt=0)
    scale: list[float] = Field(default_factory=list, description="vector: one a label; platt: one")
    shift: list[float] = Field(default_factory=list, description="vector: one a label; platt: one")
    knots: list[tuple[float, float]] = Field(
        default_factory=list, description="isotonic: difference of logits, ascending, and probability"
    )
    thresholds: list[float] = Field(
        default_factory=list,
        description="multilabel: for each label the probability above which it is answered; empty: 0.5 for all",
    )
    at_least_one: bool = Field(
        default=False, description="multilabel: where no label is above its threshold, the likeliest one is answered"
    )
    fitted_rows: int = 0
    nll_before: float | None = None
    nll_after: float | None = None
    held_out_nll: dict[str, float] = Field(default_factory=dict, description="kind -> cross-validated NLL")
    conformal: Conformal | None = None
    intervals: IntervalCalibration | None = Field(default=None, description="regression")
    sequence: SequenceCalibration | None = Field(default=None, description="generation")


class Golden(Frozen):
    """Golden inputs with the calibrated outputs (probabilities, or a number) of the artefact when it was made."""

    texts: list[str]
    probabilities: list[list[float]]
    sets: list[list[int]] = Field(
        default_factory=list, description="label indices in the 90 % prediction set of each row of `probabilities`"
    )
    completions: list[list[int]] = Field(
        default_factory=list, description="generation: token ids of each greedy answer"
    )
    logprobs: list[list[float]] = Field(
        default_factory=list, description="generation: log-probabilities of these tokens"
    )
    tolerance: float = 1e-3


class ModelManifest(Frozen):
    """`manifest.json` of a model version: written last, with the SHA-256 of every other file of the folder."""

    format: Literal[1] = MANIFEST_FORMAT
    model_version: str
    model_name: str
    task: str
    labels: list[str]
    untaught_labels: list[str] = Field(
        default_factory=list,
        description="labels that no row has trained, in this version or in those that it started from",
    )
    base_model: str
    base_model_sha256: str
    max_length: int
    max_new_tokens: int = Field(default=128, description="generation: maximum tokens of an answer")
    parent_version: str | None
    round_id: str
    dataset_fingerprint: str
    method: str
    kind: Literal["transformer", "tfidf"] = Field(
        default="transformer",
        description="what the served graph reads: a base model's tokens, or n-grams (vocabulary.json)",
    )
    normaliser: str | None = Field(
        default=None,
        description="name and version of the normalisation of texts, in training and in serving; null: none in serving",
    )
    artifact: str = Field(default="fp32", description="precision of the served model: fp32, int8, student-int8 or bf16")
    seed: int | None = None
    code_version: str | None = None
    calibration: Calibration
    golden: Golden
    files: dict[str, str] = Field(description="relative path -> SHA-256")
