"""What a row says, for each task, as one canonical text.

A label, a list of labels, a number or a text becomes a string that is equal for equal targets, so that rows are compared,
merged, hashed and stored alike whatever the task. Files, feedback and training read and write targets here. It
deliberately knows no taxonomy: whether a label exists is its caller's question.
"""

import json
import math
from typing import Literal

Task = Literal["classification", "multilabel", "regression", "generation"]
Built = Literal["classification", "multilabel", "regression"]  # what `ratchet init --task` takes

# The column of a labelled file that holds the target.
COLUMNS: dict[Task, str] = {
    "classification": "label",
    "multilabel": "labels",
    "regression": "target",
    "generation": "completion",
}
# Tasks whose targets are made of a taxonomy's labels.
LABELLED: tuple[Task, ...] = ("classification", "multilabel")


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
            return repr(float(value) + 0.0)  # no -0.0
        case _:
            if not isinstance(value, str) or not value.strip():
                raise BadTarget(f"{value!r}: expected a {'label' if task == 'classification' else 'text'}")
            return value


def from_cell(task: Task, cell: object) -> str:
    """The canonical text of what a file's cell holds. Raises BadTarget.

    Labels may be a list, JSON or parted by `|`; a number may be written as text.
    """
    match task, cell:
        case "multilabel", str(text):
            return canonical(task, _listed(text))
        case "regression", str(text):
            try:
                return canonical(task, float(text))
            except ValueError:
                raise BadTarget(f"{text!r}: expected a finite number, such as 3.5") from None
        case "classification", _:
            return canonical(task, str(cell).strip())
    return canonical(task, cell)


def _listed(text: str) -> object:
    if not text.startswith("["):
        return [label.strip() for label in text.split("|")]
    try:
        return json.loads(text)
    except ValueError:
        raise BadTarget(f"{text!r}: expected labels as a JSON list, or parted by |") from None


def text_of(value: str | float | list[str]) -> str:
    """The canonical text of a value whose task its type tells; whether it is a good target is not looked at."""
    if isinstance(value, list):
        return json.dumps(sorted(set(value)), ensure_ascii=False)
    return value if isinstance(value, str) else repr(float(value) + 0.0)


def value_of(task: Task, target: str) -> str | float | list[str]:
    """What a canonical text says: the inverse of `canonical`."""
    match task:
        case "multilabel":
            return list(labels_of(task, target))
        case "regression":
            return float(target)
    return target


def labels_of(task: Task, target: str) -> tuple[str, ...]:
    """The labels that a canonical target names: one, several or, where the task has no labels, none."""
    if task == "classification":
        return (target,)
    return tuple(json.loads(target)) if task == "multilabel" else ()
