"""Read JSON Lines, or one JSON list of objects, as records with their line numbers.

The first characters decide which of the two it is, not the suffix. Lines end at "\\n" only, because strings may contain other
line separators. Each bad line is a problem. reading.py calls it for .jsonl, .ndjson and .json.
"""

import json
from collections.abc import Iterator, Sequence

from pipelines.files.records import BadFile, Record, Table, brief

_SPACE = " \t\r\n"


def read_json(text: str) -> Table:
    """Return the records of JSON text. Raises BadFile: no rows, or a list that ends early."""
    if _is_one_object(text):
        raise BadFile("holds one object over several lines: expected a list of objects, or one object per line")
    table = Table([])
    items = _items(text) if text.lstrip(_SPACE).startswith("[") and not _is_lines(text) else _lines(text)
    columns: dict[str, None] = {}
    for where, value, problem in items:
        if problem is not None:
            table.problems.append(f"{where}: {problem}")
        elif isinstance(value, dict):
            columns.update(dict.fromkeys(value))
            table.records.append(Record(where, value))
        else:
            table.problems.append(f'{where}: {brief(json.dumps(value))} is not an object such as {{"text": ...}}')
    if not table.records and not table.problems:
        raise BadFile("no rows")
    table.columns = list(columns)
    return table


def _is_lines(text: str) -> bool:
    """Return whether text that begins with a list has one list per line: then each line is bad."""
    first = text.lstrip(_SPACE).split("\n", 1)
    if len(first) == 1 or not first[1].strip(_SPACE):
        return False
    try:
        json.loads(first[0])
    except (ValueError, RecursionError):
        return False
    return True


def _is_one_object(text: str) -> bool:
    """Return whether the text is a single object that spans lines."""
    if text.lstrip(_SPACE).split("\n", 1)[0].rstrip() != "{":
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _lines(text: str) -> Iterator[tuple[str, object, str | None]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip(_SPACE):
            try:
                value = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", None, _message(error, line)
            else:
                yield f"line {number}", value, None


def _items(text: str) -> Iterator[tuple[str, object, str | None]]:
    """Yield the members of one list, each with its first line. Raises BadFile if the list ends early."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    at, line, counted_to = _skip(text, text.index("[") + 1), 1, 0
    while text[at : at + 1] != "]":
        line, counted_to = line + text.count("\n", counted_to, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise BadFile(f"line {line}: {_message(error, text[at:])}") from error
        yield f"line {line}", value, None
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
            if text[at : at + 1] == "]":
                raise BadFile(f"line {text.count(chr(10), 0, at) + 1}: a comma before ']': remove it")
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted_to, at)
            raise BadFile(f"line {line}: expected ',' or ']' after a row of the list: is the file cut off?")
    at = _skip(text, at + 1)
    if at < len(text):
        raise BadFile(
            f"line {text.count(chr(10), 0, at) + 1}: text follows the list's ']': put every row into one list, or each on a line"
        )


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} appears twice in an object")
    return value


def _message(error: Exception, line: str) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        cut_off = ": is the line cut off?" if error.pos >= len(line.rstrip()) or "Unterminated" in error.msg else ""
        return f"not JSON: {error.msg} (column {error.colno}){cut_off}"
    return brief(str(error))
