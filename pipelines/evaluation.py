"""Evaluation: one artefact, or one matrix of probabilities, scored on one split.

Turns probabilities and true labels into an `EvaluationReport` and the per-row `Evidence` that the gates compare.
judging.py calls it. It deliberately judges nothing.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from pipelines import measures
from pipelines.dataset.files import FileRow
from schemas.artifacts import Calibration, EvaluationReport
from serving import calibration as applied
from serving.runtime import Runtime

LEAST_SLICE = 20


@dataclass(frozen=True)
class Evidence:
    """What one model says of the rows [n] of a split, in their order, and how that compares with the truth.

    `labels` are the model's, `known` of them, then those true labels that it does not know; `probabilities` [n, k] has a
    column for each.
    """

    report: EvaluationReport
    rows: Sequence[FileRow]
    labels: list[str]
    known: int
    probabilities: NDArray[np.float64]
    truth: NDArray[np.int64]
    calibration: Calibration
    raw: NDArray[np.float64] | None = None  # before calibration, where known

    @cached_property
    def best(self) -> NDArray[np.int64]:
        """The most probable label's column [n]."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """The most probable label's name [n]."""
        return np.array(self.labels)[self.best]

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the answer [n]."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """[n]."""
        return np.asarray(self.best == self.truth)

    @cached_property
    def nll(self) -> NDArray[np.float64]:
        """[n]."""
        return measures.row_nll(self.probabilities, self.truth)

    @cached_property
    def brier(self) -> NDArray[np.float64]:
        """[n]."""
        return measures.row_brier(self.probabilities, self.truth)


def score(
    probabilities: NDArray[np.float64],
    labels: Sequence[str],
    rows: Sequence[FileRow],
    *,
    version: str,
    split: str,
    calibration: Calibration | None = None,
    raw: NDArray[np.float64] | None = None,
) -> Evidence:
    """Score probabilities, columns in the order of `labels`. A true label unknown to the model has probability 0.

    Args:
        probabilities: [n, k], calibrated.
        labels: k names.
        rows: n rows with their true labels.
        version: for the report.
        split: for the report.
        calibration: what made the probabilities, with the scores of prediction sets.
        raw: [n, k], the same before calibration.

    """
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    missing = sorted({row.label for row in rows} - set(labels))
    names = [*labels, *missing]
    index = {label: n for n, label in enumerate(names)}
    truth = np.array([index[row.label] for row in rows])
    full = _widened(probabilities, len(missing))
    found = measures.measure(full, truth)
    confidence, right, nll = full.max(axis=1), full.argmax(axis=1) == truth, measures.row_nll(full, truth)
    report = EvaluationReport(
        model_version=version,
        split=split,
        n=len(rows),
        accuracy=found["accuracy"].value,
        macro_f1=float(f1_score(truth, full.argmax(axis=1), average="macro", zero_division=0.0)),
        nll=found["nll"].value,
        brier=found["brier"].value,
        ece=found["ece"].value,
        ece_null_99=found["ece"].null_99 or 0.0,
        by_slice={
            name: {"n": len(own), "accuracy": float(right[own].mean()), "nll": float(nll[own].mean())}
            for name, own in slices(rows).items()
        },
        measures=found,
        reliability=measures.reliability(confidence, right),
    )
    before = None if raw is None else _widened(raw, len(missing))
    return Evidence(report, rows, names, len(labels), full, truth, calibration or Calibration(), before)


def slices(rows: Sequence[FileRow]) -> dict[str, NDArray[np.int64]]:
    """Rows' numbers by metadata value ("channel=ios") and by true label ("label=refund"), wherever 20 rows share one."""
    members: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        for key, value in {**row.metadata, "label": row.label}.items():
            members[f"{key}={value}"].append(n)
    return {name: np.array(found) for name, found in sorted(members.items()) if len(found) >= LEAST_SLICE}


def evaluate(runtime: Runtime, rows: Sequence[FileRow], *, split: str) -> Evidence:
    """Score the artefact that would serve."""
    fitted = runtime.manifest.calibration
    found = logits(runtime, [row.text for row in rows])
    return score(
        applied.apply(fitted, found),
        runtime.labels,
        rows,
        version=runtime.version,
        split=split,
        calibration=fitted,
        raw=applied.softmax(found),
    )


def logits(runtime: Runtime, texts: Sequence[str]) -> NDArray[np.float64]:
    """The artefact's logits [n, k], up to a constant in each row: logarithms of what it says without its calibration."""
    bare = copy.copy(runtime)
    bare.manifest = runtime.manifest.model_copy(update={"calibration": Calibration()})
    return np.log(np.clip(bare.probabilities(texts), 1e-30, 1))


def _widened(probabilities: NDArray[np.float64], columns: int) -> NDArray[np.float64]:
    return np.hstack([probabilities, np.zeros((len(probabilities), columns))])
