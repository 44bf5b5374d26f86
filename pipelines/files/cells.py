"""Turn one record into a text, a canonical target and metadata.

This module handles what people write into cells; schemas/targets.py defines the canonical targets. dataset/files.py calls it
and anonymises the result.
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

_SURROGATE = re.compile("[\ud800-\udfff]")  # unpaired surrogates: UTF-8 cannot encode them


class BadRow(ValueError):
    """A record that is no labelled text; the message names the cell and the reason."""


@dataclass(frozen=True)
class Cells:
    """A text, its canonical target (None: explicitly missing), and the other cells as text."""

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
            raise BadRow(f"no {column!r}, which other rows have: add it")
    text, target = values[layout.text], values[layout.target]
    if text is None and target is None:  # no text that could be lost
        return Cells("", None, {})
    if _is_empty(text):
        raise BadRow(f"{layout.text} is empty")
    if not isinstance(text, str | int | float):
        raise BadRow(f"{layout.text} is {brief(text)}: expected a text")
    if target is not None and _is_empty(target):
        hint = "; write [] for a row without labels" if task == "multilabel" else ""
        raise BadRow(f"{layout.target} is empty{hint}")
    try:
        canonical = None if target is None else _canonical(task, target)
    except BadTarget as error:
        raise BadRow(f"{layout.target} is {brief(str(error))}") from error
    others = {key: str(value).strip() for key, value in values.items() if key not in layout.used and value is not None}
    metadata = {_without_surrogates(key): _without_surrogates(value) for key, value in others.items() if value}
    return Cells(_without_surrogates(str(text).strip()), canonical, metadata)


def is_label_list(cell: object) -> bool:
    """Return whether a cell is a list of labels, or labels separated by `|`."""
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
    """Return a stored value as text, number, list or object; NaN as None, because it means missing."""
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
    """Return whether a text is a list or object in JSON or Python syntax."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return isinstance(parse(text), list | dict | set)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return False


def _without_surrogates(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)
