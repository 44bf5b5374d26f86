"""Obstacles: why a dataset can train or judge no model, in one line with the way out.

training_round.py asks before it trains; such a round ends as skipped, because the same rows would stop it again.
"""

from collections import Counter

from pipelines.dataset.build import Dataset
from pipelines.dataset.groups import DUPLICATE
from schemas.manifests import DatasetManifest
from schemas.printable import one_line
from schemas.targets import Task

ALIKE = (DUPLICATE, "disagreement", "outvoted", "merged into a median")  # reasons of rows that are near-duplicates
MOSTLY = 0.5  # share of the rows from which they are the cause


def obstacle(dataset: Dataset, task: Task) -> str | None:
    """Return why no round is possible with these rows; None if one is."""
    manifest = dataset.manifest
    targets = Counter(row.label for row in dataset.train)
    if not targets:
        return f"no row is left to train on, of {manifest.rows_in}: {_cause(manifest)}"
    if len(targets) < 2:
        [(target, rows)] = targets.items()
        return (
            f"all {rows} training rows have the target {one_line(target, 60)!r}, of {manifest.rows_in} rows in: "
            f"{_cause(manifest)}"
        )
    if not dataset.reference:
        return (
            f"no row is left to judge by: {len(dataset.train)} rows train, {len(dataset.calibration)} calibrate: give a "
            "reference file (dataset.reference), or more rows in the seed, of which a share is held out"
        )
    if task == "multilabel" and not any(row.label != "[]" for row in dataset.reference):
        return "no reference row has a label: add rows with labels to the reference (dataset.reference)"
    return None


def _cause(manifest: DatasetManifest) -> str:
    """Return the most frequent reason for which rows were left out, with the way out."""
    dropped = manifest.dropped
    alike = sum(dropped.get(reason, 0) for reason in ALIKE)
    if alike >= MOSTLY * manifest.rows_in:
        return f"{alike} rows have nearly the same text as another row: add rows with different texts"
    if dropped:
        reason, rows = max(dropped.items(), key=lambda item: item[1])
        example = one_line(manifest.dropped_examples.get(reason, ""), 60)
        return (
            f"most were left out as {reason!r} ({rows}, such as {example!r}): see dataset.html in the round's folder, then "
            "correct these rows or add others"
        )
    return "add rows with another target to the seed, or give feedback with one"
