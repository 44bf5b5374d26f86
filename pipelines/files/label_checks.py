"""Label checks: what looks odd about the labels of a file, in sentences.

Turns labels and their counts into notes: words for "missing", labels that are nearly equal, several labels in one.
dataset/files.py and services/checks/data_summary.py call it. It changes no label and refuses none.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from pipelines.files.records import brief, counted
from schemas.targets import Task

# What programs and people write where a value is missing.
_MISSING = set(
    "nan nat null nil none n/a na <na> n.a. #n/a #na #null! #value! #ref! #name? #div/0! #num! - -- --- . ? ?? missing undefined "
    "(null) (none) (blank) (empty) [null] \\n unlabeled unlabelled -nan 1.#qnan -1.#ind".split()
)
_JOINTS = re.compile(r"[\s_\-./:;,'\"!?()\[\]&]+")
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_MOST_NAMED = 5
_LONG = 100  # characters; longer labels are texts, as a rule
_MANY = 20  # labels from which one per row is odd


def label_notes(task: Task, counts: Mapping[str, int], *, parted: bool) -> list[str]:
    """Return what looks odd about labels and their counts; `parted`: some cell of a multilabel file names several labels."""
    notes = []
    if missing := [label for label in counts if is_missing(label)]:
        named = ", ".join(f"{label!r} ({counted(counts[label])})" for label in missing[:_MOST_NAMED])
        notes.append(
            f"{'labels' if len(missing) > 1 else 'label'} {named}: a word for a missing value, read as a label; if no label "
            "was meant, take the rows out"
        )
    if counts.get("-1") and all(label.isdecimal() for label in counts if label != "-1"):
        notes.append(f"label '-1' ({counted(counts['-1'])}) often stands for no label: if it does, take the rows out")
    notes += [near_equal_note(group) for group in near_equal(counts)]
    if task == "multilabel" and not parted:
        notes += [note for separator in ",;/" if (note := _one_of_several(counts, separator))]
    if long := [label for label in counts if len(label) > _LONG]:
        notes.append(f"{counted(len(long))} with a label of more than {_LONG} characters: is it the column of labels?")
    elif task == "classification" and len(counts) >= _MANY and sum(counts.values()) < 1.1 * len(counts):
        notes.append("nearly every row has a label of its own: is it the column of labels?")
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
    """Return the sentence about one group of nearly equal labels."""
    by_case = len({label.casefold() for label in group}) == 1
    difference = "case" if by_case else "case, space or punctuation"
    return f"labels {' and '.join(brief(repr(label)) for label in group)} differ only by {difference}: are they one?"


def is_missing(text: str) -> bool:
    """Return whether a label or text is a word for a missing value, such as NaN, NULL or n/a."""
    return text.strip().casefold() in _MISSING


def _one_of_several(counts: Mapping[str, int], separator: str) -> str | None:
    """Return a note if labels look like several ones parted by a separator that is not ours."""
    joined = {label: [part.strip() for part in label.split(separator)] for label in counts if separator in label}
    if separator == "/":  # rare between labels, common inside one: only where the parts are labels
        joined = {label: parts for label, parts in joined.items() if any(part in counts for part in parts)}
    if not joined:
        return None
    example = next(iter(joined))
    rows = sum(counts[label] for label in joined)
    return (
        f"no cell holds '|', and {counted(rows)} {'has' if rows == 1 else 'have'} {separator!r} inside a label, such as "
        f"{brief(example)!r}, read as one label: if they are several, part them by '|'"
    )
