"""Sides: which clusters train, which validate, which are held out; decided once, and kept in the ledger.

Turns a cluster's key into a side. build.py asks the ledger what is decided already and passes it in; what is new is decided
here, by the key's own bits: a keyed hash, so that a side says nothing of what came before or after. It deliberately moves
nothing: a side in the ledger stands, whatever the rules would say today.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.dataset.examples import FROM_FILES, Example
from schemas.targets import Task, labels_of

Side = Literal["train", "validation", "calibration", "test"]
LEAST_TRAINING_ROWS = 2  # a label
TEST_SHARE, TEST_ROWS, STANDING_REFERENCE = 0.3, 1000, 500


@dataclass(frozen=True)
class Policy:
    """Shares of the sides, and by what they are drawn."""

    validation: float
    calibration: float
    by: Literal["text", "time", "person"] = "text"


def cluster_key(name: str, text: str) -> str:
    """What the ledger calls a text: 64 hexadecimal digits, the same for texts that differ in case or white space alone."""
    folded = " ".join(text.casefold().split())
    return hashlib.sha256(f"{name}\0{folded}".encode("utf-8", "surrogatepass")).hexdigest()


def held_out_side(key: str, policy: Policy) -> Side:
    """Side of a row that judges: a share of those fits the calibration instead."""
    return "calibration" if _share(key, 2) < policy.calibration else "test"


def decide(
    rows: Sequence[Example],
    keys: Sequence[str],
    known: Mapping[str, str],
    policy: Policy,
    *,
    task: Task,
    reference_rows: int,
) -> list[str]:
    """Sides of `rows`, one a cluster.

    Rows of files are held out at 30 % until 1,000 rows judge or calibrate, and none while a reference of 500 stands; feedback
    is no fair sample and never is. Every label keeps two training rows of those that are new, if it has them.

    Args:
        rows: what stands for each cluster, in any order.
        keys: their clusters' keys.
        known: the ledger.
        policy: the project's.
        task: what labels are.
        reference_rows: rows of the curated reference in use.

    """
    side: dict[str, str] = {key: known[key] for key in keys if key in known}
    # a rejection teaches, but is no row of its label
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
            own = labels_of(task, e.label)
            waiting.subtract(own)
            enough = all(in_training[label] + waiting[label] >= LEAST_TRAINING_ROWS for label in own)
            draws = held_out < TEST_ROWS and reference_rows < STANDING_REFERENCE and e.source in FROM_FILES
            if enough and draws and _share(key, 1) < TEST_SHARE:
                wanted = held_out_side(key, policy)
                held_out += 1
            elif enough and _validates(e, key, policy, newest):
                wanted = "validation"
            else:
                in_training.update(own)
        side[key] = wanted
    return [side[key] for key in keys]


def _validates(e: Example, key: str, policy: Policy, newest: str) -> bool:
    if policy.by == "time" and e.order:
        return e.order >= newest
    if policy.by == "person" and e.person:
        return _share(hashlib.sha256(e.person.encode()).hexdigest(), 0) < policy.validation
    return _share(key, 0) < policy.validation


def _newest(rows: Sequence[Example], share: float) -> str:
    """The time from which on the newest share of the rows lies."""
    times = sorted(e.order for e in rows if e.order)
    return times[int(len(times) * (1 - share))] if times else ""


def _share(key: str, draw: int) -> float:
    """Independent draws in [0, 1) from one hash."""
    return int(key[16 * draw : 16 * (draw + 1)], 16) / 16**16
