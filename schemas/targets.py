"""What a row says, for each task, as one canonical text.

A label, a list of labels, a number or a text becomes a string that is equal for equal targets, so that rows are compared,
merged, hashed and stored alike whatever the task. Files, feedback and training read and write targets here. It
deliberately knows no taxonomy: whether a label exists is its caller's question.
"""

import json
import math
import re
import unicodedata
from typing import Literal

Task = Literal["classification", "multilabel", "regression", "generation"]

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


# Characters that nobody sees: soft hyphens, zero-width and bidirectional marks, byte-order marks, variation selectors.
_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]+")
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)\.0+")


def label_name(value: object) -> str:
    """Return the one name of a label, whatever source it comes from: files, feedback, Kafka or the command line.

    Text is put in Unicode's NFC, loses invisible and control characters, and has runs of white space made one space. A number
    becomes its text, and numbers that are equal become one label: `1`, `1.0` and `"1.0"` are `"1"`.

    Raises:
        BadTarget: a list, an object, null, NaN, an infinite number, or a text without a visible character.

    """
    if isinstance(value, str):
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in _INVISIBLE.sub("", value))
        name = unicodedata.normalize("NFC", " ".join(text.split()))
        if not name or any("\ud800" <= c <= "\udfff" for c in name):
            raise BadTarget(f"{value!r}: expected a label")
    elif isinstance(value, int | float) and math.isfinite(value):
        name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    else:
        raise BadTarget(f"{value!r}: expected a label")
    return name.partition(".")[0].replace("-0", "0") if _WHOLE.fullmatch(name) else name


def canonical(task: Task, value: object) -> str:
    """The canonical text of a label, list of labels, number or text. Raises BadTarget."""
    match task:
        case "classification":
            return label_name(value)
        case "multilabel":
            if not isinstance(value, list | tuple | set | frozenset):
                raise BadTarget(f"{value!r}: expected a list of labels")
            return json.dumps(sorted({label_name(label) for label in value}), ensure_ascii=False)
        case "regression":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise BadTarget(f"{value!r}: expected a finite number")
            return repr(float(value) + 0.0)  # no -0.0
        case _:
            if not isinstance(value, str) or not value.strip():
                raise BadTarget(f"{value!r}: expected a text")
            return value.strip()


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
