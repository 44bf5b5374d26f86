"""Evaluation: one artefact, or one matrix of probabilities, scored on one split.

Turns probabilities and true labels into an `EvaluationReport` and the per-row evidence that the gates compare. It
deliberately judges nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from pipelines import calibration
from pipelines.dataset.files import FileRow
from schemas.artifacts import EvaluationReport
from serving.runtime import Runtime


@dataclass(frozen=True)
class Evidence:
    """Per row: right or wrong, NLL and Brier score. All [n], in the split's order."""

    report: EvaluationReport
    right: NDArray[np.bool_]
    nll: NDArray[np.float64]
    brier: NDArray[np.float64]


def score(
    probabilities: NDArray[np.float64], labels: Sequence[str], rows: Sequence[FileRow], *, version: str, split: str
) -> Evidence:
    """Score probabilities [n, k], columns in the order of `labels`. A true label unknown to the model has probability 0."""
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    known = list(labels)
    missing = sorted({row.label for row in rows} - set(known))
    full = np.hstack([probabilities, np.zeros((len(rows), len(missing)))])
    names = known + missing
    index = {label: n for n, label in enumerate(names)}
    truth = np.array([index[row.label] for row in rows])
    best = full.argmax(axis=1)
    right = best == truth
    nll = -np.log(np.clip(full[np.arange(len(truth)), truth], calibration.FLOOR, 1))
    squared = calibration.brier(full, truth)
    confidence = full.max(axis=1)
    report = EvaluationReport(
        model_version=version,
        split=split,
        n=len(rows),
        accuracy=float(right.mean()),
        macro_f1=float(f1_score(truth, best, average="macro", zero_division=0.0)),
        nll=float(nll.mean()),
        brier=float(squared.mean()),
        ece=calibration.ece(confidence, right),
        ece_null_99=calibration.ece_null(confidence),
        by_slice=_by_slice(rows, right, nll),
    )
    return Evidence(report, right, nll, squared)


def evaluate(runtime: Runtime, rows: Sequence[FileRow], *, split: str) -> Evidence:
    """Score the artefact that would serve."""
    probabilities = runtime.probabilities([row.text for row in rows])
    return score(probabilities, runtime.labels, rows, version=runtime.version, split=split)


def _by_slice(
    rows: Sequence[FileRow], right: NDArray[np.bool_], nll: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    """Accuracy and NLL by metadata value, for values that at least 20 rows share."""
    members: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        for key, value in row.metadata.items():
            members[f"{key}={value}"].append(n)
    return {
        name: {"n": len(found), "accuracy": float(right[found].mean()), "nll": float(nll[found].mean())}
        for name, found in members.items()
        if len(found) >= 20
    }
