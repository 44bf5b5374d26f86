"""Write notes on odd labels of a file: words for missing values, nearly equal labels, several labels in one cell.

Labels are neither changed nor refused. dataset/files.py and services/checks/data_summary.py call it.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from pipelines.files.records import brief, counted
from schemas.targets import Task

# Words for a missing value, written by programs and people.
_MISSING = set(
    "nan nat null nil none n/a na <na> n.a. #n/a #na #null! #value! #ref! #name? #div/0! #num! - -- --- . ? ?? missing undefined "
    "(null) (none) (blank) (empty) [null] \\n unlabeled unlabelled -nan 1.#qnan -1.#ind".split()
)
_JOINTS = re.compile(r"[\s_\-./:;,'\"!?()\[\]&]+")
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_MOST_NAMED = 5
_LONG = 100  # characters; longer labels are probably texts
_MANY = 20  # with this many labels, nearly one per row is odd


def label_notes(task: Task, counts: Mapping[str, int], *, lists: bool) -> list[str]:
    """Return notes on odd labels; `lists`: some cell of a multilabel file has several labels."""
    notes = []
    if missing := [label for label in counts if is_missing(label)]:
        named = ", ".join(f"{label!r} ({counted(counts[label])})" for label in missing[:_MOST_NAMED])
        notes.append(
            f"{'labels' if len(missing) > 1 else 'label'} {named}: a word for a missing value, read as a label; if none "
            "was meant, remove the rows"
        )
    if counts.get("-1") and all(label.isdecimal() for label in counts if label != "-1"):
        notes.append(f"label '-1' ({counted(counts['-1'])}) often means no label: if so, remove the rows")
    notes += [near_equal_note(group) for group in near_equal(counts)]
    if task == "multilabel" and not lists:
        notes += [note for separator in ",;/" if (note := _one_of_several(counts, separator))]
    if long := [label for label in counts if len(label) > _LONG]:
        notes.append(f"{counted(len(long))} with a label of more than {_LONG} characters: is this the label column?")
    elif task == "classification" and len(counts) >= _MANY and sum(counts.values()) < 1.1 * len(counts):
        notes.append("nearly every row has a different label: is this the label column?")
    return notes


def near_equal(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that differ only by case, space, punctuation or width of characters."""
    groups = defaultdict[str, list[str]](list)
    for label in labels:
        folded = unicodedata.normalize("NFKC", label).casefold()
        key = folded if _NUMBER.fullmatch(folded) else _JOINTS.sub("", folded)
        groups[key or folded].append(label)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def near_equal_note(group: Iterable[str]) -> str:
    """Return the note on one group of nearly equal labels."""
    by_case = len({label.casefold() for label in group}) == 1
    difference = "case" if by_case else "case, space or punctuation"
    return f"labels {' and '.join(brief(repr(label)) for label in group)} differ only by {difference}: are they the same label?"


def is_missing(text: str) -> bool:
    """Return whether a label or text is a word for a missing value, such as NaN, NULL or n/a."""
    return text.strip().casefold() in _MISSING


def _one_of_several(counts: Mapping[str, int], separator: str) -> str | None:
    """Return a note if labels look like several ones joined by another separator than `|`."""
    joined = {label: [part.strip() for part in label.split(separator)] for label in counts if separator in label}
    if separator == "/":  # common inside a label: only if some part is a label
        joined = {label: parts for label, parts in joined.items() if any(part in counts for part in parts)}
    if not joined:
        return None
    example = next(iter(joined))
    rows = sum(counts[label] for label in joined)
    return (
        f"no cell holds '|', and {counted(rows)} {'has' if rows == 1 else 'have'} {separator!r} inside a label, such as "
        f"{brief(example)!r}, read as one label: if they are several, separate them by '|'"
    )
