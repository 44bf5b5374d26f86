"""Queue files: items to label in a spreadsheet, and the labels that come back.

Turns items into rows for exports.py, and a file edited by hand into labels with their line numbers. Every bad row is named, and
nothing of a file with a bad row is stored.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import orjson

from schemas.queue import QueueItem
from schemas.targets import value_of
from services.cli.rows.exports import cell

COLUMNS = ("item_id", "kind", "round_id", "text", "answer_1", "answer_2", "label")
NEEDED = ("item_id", "label")
SHOWN = 20  # errors named of a bad file


@dataclass(frozen=True)
class Labelled:
    """One row with a label: the line of the file, the item, its label, and its text if the file has it."""

    line: int
    item_id: str
    label: Any
    text: str | None


class BadQueueFile(click.ClickException):
    """The file cannot be imported; the message names every bad row."""

    def __init__(self, path: Path, errors: Sequence[tuple[int, str]]) -> None:
        lines = [f"  line {line}: {error}" for line, error in sorted(errors)[:SHOWN]]
        more = [f"  and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
        count = "1 row is bad" if len(errors) == 1 else f"{len(errors)} rows are bad"
        super().__init__("\n".join([f"{path}: {count}, no label was stored:", *lines, *more]))


def exported(items: Sequence[QueueItem]) -> Iterator[dict[str, Any]]:
    """Yield a row for each item, with an empty label."""
    for item in items:
        first, second = (*item.answers, None, None)[:2]
        yield {
            "item_id": item.item_id,
            "kind": item.kind,
            "round_id": item.round_id,
            "text": item.text,
            "answer_1": None if first is None else value_of(item.task, first),
            "answer_2": None if second is None else value_of(item.task, second),
            "label": None,
        }


def read(path: Path) -> list[Labelled]:
    """Return the rows of a .csv or .jsonl file that have a label. Raises BadQueueFile, UsageError or OSError."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise click.UsageError(f"{path}: expected a name that ends in .csv or .jsonl")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path}: byte {error.start} is no UTF-8: save the file as UTF-8") from None
    rows, errors = (_csv if kind == ".csv" else _jsonl)(path, content)
    labelled = []
    for line, row in rows:
        label, item_id = row.get("label"), row.get("item_id")
        if label is None or (isinstance(label, str) and not label.strip()):
            continue
        if not isinstance(item_id, str) or not item_id.strip():
            errors.append(
                (line, f"item_id {item_id!r}: expected the id of an item, as `ratchet queue export` wrote it")
            )
            continue
        text = row.get("text")
        labelled.append(Labelled(line, item_id.strip(), label, text if isinstance(text, str) else None))
    if errors:
        raise BadQueueFile(path, errors)
    return labelled


def changed_texts(rows: Sequence[Labelled], texts: dict[str, str]) -> list[tuple[int, str]]:
    """Return an error for each row whose text is not its item's; `texts` has the texts by item id."""
    return [
        (row.line, f"the text of item {row.item_id} was changed: label the text as it is, or empty the label")
        for row in rows
        if row.text is not None and row.item_id in texts and row.text not in _forms(texts[row.item_id])
    ]


def _forms(text: str) -> tuple[str, str]:
    """Return a text as it is, and as a CSV has it."""
    return text, cell(text)


def _csv(path: Path, content: str) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str]]]:
    reader = csv.reader(content.splitlines(keepends=True))
    header = [name.strip() for name in next(reader, [])]
    if missing := [name for name in NEEDED if name not in header]:
        raise click.ClickException(f"{path}: column {' and '.join(missing)} is missing; expected item_id and label")
    if repeated := sorted({name for name in header if header.count(name) > 1 and name}):
        raise click.ClickException(f"{path}: column {repeated[0]} occurs twice: keep one of them")
    rows, errors = list[tuple[int, dict[str, Any]]](), list[tuple[int, str]]()
    for cells in reader:
        if len(cells) != len(header) and any(cells):
            errors.append((reader.line_num, f"{len(cells)} cells, expected {len(header)} as in the header"))
        elif cells:
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    return rows, errors


def _jsonl(_path: Path, content: str) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str]]]:
    rows, errors = list[tuple[int, dict[str, Any]]](), list[tuple[int, str]]()
    for line, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            errors.append((line, f"no JSON: {error}"))
            continue
        missing = [name for name in NEEDED if not isinstance(row, dict) or name not in row]
        if missing:
            errors.append((line, f"{' and '.join(missing)} is missing; expected an object with item_id and label"))
        else:
            rows.append((line, row))
    return rows, errors
