"""Detect which columns of a file have the text and the target.

Precedence: the configured column; the standard name, ignoring case and space; the only column with a common synonym as name.
Two candidates are an error. Readers of tables call it to find the header row, dataset/files.py to make rows.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.files.records import BadFile, Columns, brief
from schemas.targets import COLUMNS, Task

_TEXTS = ("sentence", "content", "review", "message", "utterance", "query")
_LABELS = ("category", "class", "intent", "sentiment", "target")
_SYNONYMS: Mapping[Task, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "classification": (_TEXTS, _LABELS),
    "multilabel": (_TEXTS, ("categories", "classes", "intents", "tags", "topics")),
    "regression": (_TEXTS, ("score", "rating", "stars", "value")),
    "generation": (
        ("prompt", "instruction", "question", "query", "input"),
        ("output", "response", "answer", "reply"),
    ),
}
_CHATS = ("messages", "conversations", "conversation")
_FEEDBACK = {"feedback_id", "prediction_id", "kind", "value", "text"}  # columns that `ratchet feedback export` writes
# An index written by pandas: its header cell is empty or generated.
_NAMELESS = re.compile(r"\s*|Unnamed: \d+|__index_level_\d+__")


@dataclass(frozen=True)
class Layout:
    """The columns of text and target; columns outside `used` are metadata."""

    text: str
    target: str
    used: frozenset[str]
    kind: Literal["columns", "alpaca", "chat", "feedback"] = "columns"


def find_columns(columns: Sequence[str], task: Task, named: Columns) -> Layout:
    """Return the columns of text and target. Raises BadFile if one is missing or has several candidates."""
    target_name = COLUMNS[task]
    if named == Columns() and set(columns) >= _FEEDBACK:
        return Layout("text", "value", frozenset(columns), "feedback")
    if task == "generation" and named == Columns() and (special := _generation(columns)):
        return special
    texts, targets = _SYNONYMS[task]
    text = _pick(columns, "text", texts, named.text, "text")
    target = _pick(columns, target_name, targets, named.target, "label", taken=text)
    missing = [name for name, column in (("text", text), (target_name, target)) if column is None]
    if text is None or target is None:
        raise BadFile(_missing(columns, missing, task))
    return Layout(text, target, frozenset({text, target}))


def check_header(columns: Sequence[str], where: str) -> None:
    """Raise BadFile if two columns have the same name, because one would silently replace the other."""
    twice = [name for name, n in Counter(columns).items() if n > 1 and not nameless(name)]
    if twice:
        raise BadFile(f"{where}: column {brief(twice[0])!r} appears twice in the header: rename or remove one of them")


def nameless(column: str) -> bool:
    """Return whether a column has no name, like the index that pandas writes."""
    return _NAMELESS.fullmatch(column) is not None


def _pick(
    columns: Sequence[str],
    name: str,
    synonyms: Sequence[str],
    named: str | None,
    option: str,
    *,
    taken: str | None = None,
) -> str | None:
    way_out = f"name it with --{option}-column (dataset.{option}_column)"
    if named is not None:
        if named in columns:
            return named
        same = [column for column in columns if _folded(column) == _folded(named)]
        if len(same) == 1:
            return same[0]
        raise BadFile(f"no column {named!r}, which dataset.{option}_column names; {_listing(columns)}")
    free = [column for column in columns if column != taken]
    same = [column for column in free if _folded(column) == name]
    if len(same) > 1:
        raise BadFile(f"columns {_quoted(same)} differ only by case or space: {way_out}")
    if same:
        return same[0]
    others = [column for column in free if _folded(column) in synonyms]
    if len(others) > 1:
        raise BadFile(f"no column {name!r}, and {_quoted(others)} could each be it: {way_out}")
    return others[0] if others else None


def _generation(columns: Sequence[str]) -> Layout | None:
    """Return the layout of an Alpaca file (instruction, input, output) or a chat file; None for other columns."""
    by_name = {_folded(column): column for column in columns}
    if "completion" in by_name:
        return None
    if {"instruction", "output"} <= by_name.keys():  # a column `text` beside them is the whole prompt with its answer
        used = frozenset(by_name[name] for name in ("instruction", "input", "output") if name in by_name)
        return Layout(by_name["instruction"], by_name["output"], used, "alpaca")
    if "text" in by_name:
        return None
    chats = [by_name[name] for name in _CHATS if name in by_name]
    return Layout(chats[0], chats[0], frozenset(chats), "chat") if len(chats) == 1 else None


def _missing(columns: Sequence[str], missing: Sequence[str], task: Task) -> str:
    options = " and ".join(f"--{'text' if name == 'text' else 'label'}-column" for name in missing)
    failure = f"no column {' and no column '.join(map(repr, missing))}; {_listing(columns)}"
    folded = {_folded(column) for column in columns}
    if folded & set(_CHATS) and task != "generation":
        return f"{failure}: a chat is read with --task generation"
    for other, column in COLUMNS.items():
        if other != task and column in folded and missing == [COLUMNS[task]]:
            return f"{failure}: {column!r} is the column of --task {other}; or name one with {options}"
    return f"{failure}: name it with {options}, or give the file a header"


def _listing(columns: Sequence[str]) -> str:
    shown = [brief(column)[:40] for column in columns if not nameless(column)]
    return f"it has {', '.join(shown[:12])}{', ...' * (len(shown) > 12)}" if shown else "it has no named column"


def _quoted(columns: Sequence[str]) -> str:
    return " and ".join(repr(column) for column in columns)


def _folded(column: str) -> str:
    shown = (c for c in unicodedata.normalize("NFKC", column) if unicodedata.category(c) != "Cf")
    return " ".join("".join(shown).split()).casefold()
