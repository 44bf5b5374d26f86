"""Cells: what one record says, as text, canonical target and metadata.

Turns a `Record` into an `Example` or says why it is none; dataset/files.py calls it. schemas/targets.py knows what a target is,
this module what people write into cells. Nothing is anonymised here.
"""

import ast
import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal

from pipelines.files.columns import Layout
from pipelines.files.records import Record, brief
from schemas.targets import BadTarget, Task, from_cell

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no file of ours can hold it


class BadRow(ValueError):
    """A record that is no labelled text; the message says which cell and why."""


@dataclass(frozen=True)
class Cells:
    """A text, its target in canonical form, None where the file says that it has none, and the other cells as text."""

    text: str
    target: str | None
    metadata: dict[str, str]


def read_cells(record: Record, layout: Layout, task: Task) -> Cells | None:
    """Return the text and target of a record; None if all its cells are empty. Raises BadRow."""
    values = {key: _plain(value) for key, value in record.values.items()}
    if all(_is_empty(value) for value in values.values()):
        return None
    for column in (layout.text, layout.target):
        if column not in values:
            raise BadRow(f"no {column!r}, which other rows have")
    text, target = values[layout.text], values[layout.target]
    if text is None and target is None:  # neither: nothing is lost with it
        return Cells("", None, {})
    if _is_empty(text):
        raise BadRow(f"{layout.text} is empty")
    if not isinstance(text, str | int | float):
        raise BadRow(f"{layout.text} is {brief(text)}: expected a text")
    if target is not None and _is_empty(target):
        hint = "; [] says that a row has no labels" if task == "multilabel" else ""
        raise BadRow(f"{layout.target} is empty{hint}")
    try:
        canonical = None if target is None else _canonical(task, target)
    except BadTarget as error:
        raise BadRow(f"{layout.target} is {brief(str(error))}") from error
    others = {key: str(value).strip() for key, value in values.items() if key not in layout.used and value is not None}
    metadata = {_whole(key): _whole(value) for key, value in others.items() if value}
    return Cells(_whole(str(text).strip()), canonical, metadata)


def is_parted(cell: object) -> bool:
    """Return whether a cell names labels in plural, as a list or parted by `|`."""
    return isinstance(cell, list) or (isinstance(cell, str) and ("|" in cell or cell.lstrip().startswith("[")))


def _canonical(task: Task, cell: object) -> str:
    if isinstance(cell, str):
        cell = cell.strip()
        if task == "classification" and cell[0] in "[{" and _is_literal(cell):
            raise BadTarget(f"{cell}: expected one label; several are read with --task multilabel")
    elif isinstance(cell, int | float) and not isinstance(cell, bool) and task in ("multilabel", "generation"):
        cell = str(cell)
    return from_cell(task, cell)


def _plain(value: object) -> object:
    """Return a stored value as text, number, list or object; NaN, which stands for a missing one, as None."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    return None if isinstance(value, float | Decimal) and math.isnan(value) else value


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _is_literal(text: str) -> bool:
    """Return whether a text is a list or an object, as JSON or as Python writes it."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return isinstance(parse(text), list | dict | set)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return False


def _whole(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)
