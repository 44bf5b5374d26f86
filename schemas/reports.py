"""The report of a round: everything that a reviewer reads, and everything that the page shows.

gates/evidence_and_facts.py fills it, report/page.py renders it, a version carries it as `report.json`. It deliberately
holds no times: it is part of a hashed directory.
"""

from typing import Literal

from pydantic import Field, JsonValue

from schemas.artifacts import DatasetManifest, EvaluationReport, GateReport, ReliabilityBin
from schemas.events import Frozen


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
