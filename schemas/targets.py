"""What a row says, for each task, as one canonical text.

A label, a list of labels, a number or a text becomes a string that is equal for equal targets, so that rows are compared,
merged, hashed and stored alike whatever the task. Files, feedback and training read and write targets here. It
deliberately knows no taxonomy: whether a label exists is its caller's question.
"""

import json
import math
from typing import Literal

Task = Literal["classification", "multilabel", "regression", "generation"]

# The column of a labelled file that holds the target.
COLUMNS: dict[Task, str] = {
    "classification": "label",
    "multilabel": "labels",
    "regression": "target",
    "generation": "completion",
}


class BadTarget(ValueError):
    """Not a target of that task; the message says what was expected."""


def canonical(task: Task, value: object) -> str:
    """The canonical text of a label, list of labels, number or text. Raises BadTarget."""
    match task:
        case "multilabel":
            if not isinstance(value, list | tuple | set | frozenset) or not all(
                isinstance(v, str) and v for v in value
            ):
                raise BadTarget(f"{value!r}: expected a list of labels")
            return json.dumps(sorted(set(value)), ensure_ascii=False)
        case "regression":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise BadTarget(f"{value!r}: expected a finite number")
            return repr(float(value))
        case _:
            if not isinstance(value, str) or not value.strip():
                raise BadTarget(f"{value!r}: expected a {'label' if task == 'classification' else 'text'}")
            return value


def labels_of(task: Task, target: str) -> tuple[str, ...]:
    """The labels that a canonical target names: one, several or, where the task has no labels, none."""
    if task == "classification":
        return (target,)
    return tuple(json.loads(target)) if task == "multilabel" else ()
