"""Targets: the canonical text of a label, a list of labels, a number or a text.

Equal targets have equal canonical texts, so rows of every task are compared, merged, hashed and stored alike. Files,
feedback and training read and write targets here. Whether a label exists is checked in labels.py.
"""

import ast
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
# Tasks whose targets are labels of the taxonomy.
LABELLED: tuple[Task, ...] = ("classification", "multilabel")


class BadTarget(ValueError):
    """A value is no target of the task; the message names the value and what was expected."""


# Invisible characters: soft hyphens, zero-width and bidirectional marks, byte-order marks, variation selectors.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]+"
)
_SIDE_BY_SIDE = re.compile(r"""['"]\s*['"](?!\s*[,\]])""")
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)\.0+")


def _finite(value: object) -> bool:
    """Return whether a value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def label_name(value: object) -> str:
    """Return a label's canonical name, the same for files, feedback, Kafka and the command line.

    Text is normalised to NFC without invisible and control characters; runs of white space become one space. Equal numbers
    are one label: `1`, `1.0` and `"1.0"` are `"1"`.

    Raises:
        BadTarget: a list, an object, null, NaN, an infinite number, or a text without a visible character.

    """
    if isinstance(value, str):
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in _INVISIBLE.sub("", value))
        name = unicodedata.normalize("NFC", " ".join(text.split()))
        if not name or any("\ud800" <= c <= "\udfff" for c in name):
            raise BadTarget(f"{value!r}: expected a label")
    elif isinstance(value, int | float) and _finite(value):
        name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    else:
        raise BadTarget(f"{value!r}: expected a label")
    return name.partition(".")[0].replace("-0", "0") if _WHOLE.fullmatch(name) else name


def canonical(task: Task, value: object) -> str:
    """Return the canonical text of a label, list of labels, number or text. Raises BadTarget."""
    match task:
        case "classification":
            return label_name(value)
        case "multilabel":
            if not isinstance(value, list | tuple | set | frozenset):
                raise BadTarget(f"{value!r}: expected a list of labels")
            return json.dumps(sorted({label_name(label) for label in value}), ensure_ascii=False)
        case "regression":
            if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
                raise BadTarget(f"{value!r}: expected a finite number")
            return repr(float(value) + 0.0)  # no -0.0
        case _:
            if not isinstance(value, str) or not value.strip():
                raise BadTarget(f"{value!r}: expected a text")
            return value.strip()


def from_cell(task: Task, cell: object) -> str:
    """Return the canonical text of a file's cell. Raises BadTarget.

    Labels may be a list, as text in JSON or Python, or separated by `|`; a number may be text.
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
    except (ValueError, RecursionError):
        pass
    try:
        # A list in Python's syntax. Adjacent texts, as in NumPy's, are refused: Python would join them.
        if not _SIDE_BY_SIDE.search(text):
            return ast.literal_eval(text)
        raise ValueError(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise BadTarget(f"{text!r}: expected labels as a JSON list, or separated by |") from None


def text_of(value: str | float | list[str]) -> str:
    """Return the canonical text of a valid target, whose type gives the task."""
    if isinstance(value, list):
        return json.dumps(sorted(set(value)), ensure_ascii=False)
    return value if isinstance(value, str) else repr(float(value) + 0.0)


def value_of(task: Task, target: str) -> str | float | list[str]:
    """Return the target of a canonical text: the inverse of `canonical`."""
    match task:
        case "multilabel":
            return list(labels_of(task, target))
        case "regression":
            return float(target)
    return target


def labels_of(task: Task, target: str) -> tuple[str, ...]:
    """Return the labels of a canonical target; none if the task has no labels."""
    if task == "classification":
        return (target,)
    return tuple(json.loads(target)) if task == "multilabel" else ()
