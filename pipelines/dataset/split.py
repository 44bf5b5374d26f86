"""Assign each new cluster to training, validation, calibration or test.

A side is drawn from the bits of the cluster's key, a keyed hash, so it depends on no other row. build.py passes in the sides
that the split ledger has already; they never change, whatever the rules are today.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.dataset.examples import FROM_FILES, Example
from schemas.targets import Task, labels_of
from serving.inference.normalise import folded

Side = Literal["train", "validation", "calibration", "test"]
LEAST_TRAINING_ROWS = 2  # per label
TEST_SHARE, TEST_ROWS, STANDING_REFERENCE = 0.3, 1000, 500


@dataclass(frozen=True)
class Policy:
    """Shares of the sides, and the unit by which validation is drawn."""

    validation: float
    calibration: float
    by: Literal["text", "time", "person"] = "text"


def cluster_key(name: str, text: str) -> str:
    """Return the ledger's key of a text, 64 hexadecimal digits; case and white space make no difference."""
    return hashlib.sha256(f"{name}\0{folded(text)}".encode("utf-8", "surrogatepass")).hexdigest()


def held_out_side(key: str, policy: Policy) -> Side:
    """Return "calibration" or "test" for a held-out row."""
    return "calibration" if draw(key, 2) < policy.calibration else "test"


def decide(
    rows: Sequence[Example],
    keys: Sequence[str],
    known: Mapping[str, str],
    policy: Policy,
    *,
    task: Task,
    reference_rows: int,
) -> list[str]:
    """Return the side of each row.

    30 % of the rows of files are held out until 1,000 rows are; none if the reference file has 500 rows or more. Feedback is no
    fair sample and is never held out. Every label keeps two training rows, if that many are new. Where the draw holds out
    none, one row that training can spare judges, so that a project of a few rows has rounds, which labels then settle.

    Args:
        rows: one for each cluster, in any order.
        keys: the clusters' keys.
        known: key -> side in the ledger.
        policy: the project's.
        task: the task.
        reference_rows: rows of the reference file in use.

    """
    side: dict[str, str] = {key: known[key] for key in keys if key in known}
    # a rejection trains, but is no row of its label
    in_training = Counter(
        label
        for e, key in zip(rows, keys, strict=True)
        if side.get(key) == "train" and not e.rejects
        for label in labels_of(task, e.label)
    )
    held_out = reference_rows + sum(s in ("calibration", "test") for s in side.values())
    fresh = sorted((key, n) for n, key in enumerate(keys) if key not in known)
    newest = _newest([rows[n] for _, n in fresh], policy.validation) if policy.by == "time" else ""
    waiting = Counter(label for _, n in fresh if not rows[n].rejects for label in labels_of(task, rows[n].label))
    for key, n in fresh:
        e = rows[n]
        wanted: str = "train"
        if not e.rejects:
            row_labels = labels_of(task, e.label)
            waiting.subtract(row_labels)
            enough = all(in_training[label] + waiting[label] >= LEAST_TRAINING_ROWS for label in row_labels)
            draws = held_out < TEST_ROWS and reference_rows < STANDING_REFERENCE and e.source in FROM_FILES
            if enough and draws and draw(key, 1) < TEST_SHARE:
                wanted = held_out_side(key, policy)
                held_out += 1
            elif enough and _validates(e, key, policy, newest):
                wanted = "validation"
            else:
                in_training.update(row_labels)
        side[key] = wanted
    if not held_out and (spared := _spared(rows, fresh, side, in_training, task)):
        side[spared] = "test"
    return [side[key] for key in keys]


def _spared(
    rows: Sequence[Example],
    fresh: Sequence[tuple[str, int]],
    side: Mapping[str, str],
    in_training: Mapping[str, int],
    task: Task,
) -> str | None:
    """Return the key of a new row of a file that training can spare, where the draw left none to judge; None if there is none."""
    for key, n in fresh:
        e = rows[n]
        taught = side[key] == "train"
        spare = not taught or all(in_training[label] > LEAST_TRAINING_ROWS for label in labels_of(task, e.label))
        if e.source in FROM_FILES and not e.rejects and spare:
            return key
    return None


def _validates(e: Example, key: str, policy: Policy, newest: str) -> bool:
    if policy.by == "time" and e.order:
        return e.order >= newest
    if policy.by == "person" and e.person:
        return draw(hashlib.sha256(e.person.encode()).hexdigest(), 0) < policy.validation
    return draw(key, 0) < policy.validation


def _newest(rows: Sequence[Example], share: float) -> str:
    """Return the time that separates the newest share of the rows from the rest."""
    times = sorted(e.order for e in rows if e.order)
    return times[int(len(times) * (1 - share))] if times else ""


def draw(key: str, number: int) -> float:
    """Return the draw of this number from a hash, in [0, 1); draws are independent."""
    return int(key[16 * number : 16 * (number + 1)], 16) / 16**16
