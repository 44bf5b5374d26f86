"""Read CSV and TSV as records with their line numbers.

The delimiter (comma, semicolon, tab or bar) comes from Excel's `sep=` line or from the header. Cells may be quoted and span
lines. A record that is longer or shorter than the header, or has an unclosed quote, is a problem. reading.py calls it.
"""

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.files.columns import Layout, check_header, find_columns, nameless
from pipelines.files.records import BadFile, Columns, Record, Table, brief, counted
from schemas.targets import Task

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEP = re.compile(r'"?sep=(.)"?[,;\t|]*', re.IGNORECASE)
_BREAK = re.compile(r"\r\n|\r|\n")
_MOST_QUOTES = 100  # broken quotes after which reading stops, because each restarts it on the next line


@dataclass(frozen=True, slots=True)
class _Row:
    """The cells of the lines `first` to `last`, counted from 1; or no cells and a problem."""

    first: int
    last: int
    cells: list[str]
    problem: str | None = None


def read_delimited(text: str, task: Task, named: Columns) -> Table:
    """Return the records of CSV or TSV text, below the header. Raises BadFile: no usable header."""
    csv.field_size_limit(2**31 - 1)
    lines = list(io.StringIO(text, newline=""))  # splits at \n, \r\n and a lone \r, as spreadsheets do
    start = next((n for n, line in enumerate(lines) if line.strip()), len(lines))
    if start == len(lines):
        raise BadFile("no rows")
    delimiter = None
    if hint := _SEP.fullmatch(lines[start].rstrip("\r\n")):
        delimiter, start = hint[1], start + 1
    delimiter, header, layout = _header(lines, start, delimiter, task, named)
    names = [cell.strip() for cell in header.cells]
    while names and not names[-1]:
        names.pop()  # empty columns on the right of a spreadsheet
    check_header(names, f"line {header.first}")
    rows = list(_rows(lines, header.last, delimiter))
    if layout is None:  # the caller raises the error, with advice based on the rows
        return Table(names, [_record(row, names) for row in rows if len(row.cells) == len(names)])
    swallowed = _swallowed(rows, delimiter, len(names), names.index(layout.target), task)
    table = Table([name for name in names if not nameless(name)])
    repeats = []
    for row in rows:
        cells = _trimmed(row.cells, len(names))
        if row.problem or row.first in swallowed:
            table.problems.append(f"line {row.first}: {row.problem or swallowed[row.first]}")
        elif [cell.strip() for cell in cells] == names:
            repeats.append(row.first)
        elif len(cells) != len(names) and any(cell.strip() for cell in cells):
            table.problems.append(
                f"line {row.first}: {len(cells)} cell{'s' * (len(cells) != 1)}, the header has {len(names)}{_quote_hint(row)}"
            )
        elif len(cells) == len(names):
            table.records.append(_record(replace(row, cells=cells), names))
    table.notes += _unnamed(names)
    if repeats:
        table.notes.append(f"line {repeats[0]} repeats the header: {counted(len(repeats))} of this kind left out")
    return table


def _header(
    lines: Sequence[str], start: int, delimiter: str | None, task: Task, named: Columns
) -> tuple[str, _Row, Layout | None]:
    """Return the delimiter that gives a header with text and target, that header, and its layout.

    If none does, return the delimiter that gives most cells, and no layout. Raises BadFile: no row, or a broken quote.
    """
    splits: list[tuple[str, _Row]] = []
    problem = ""
    for candidate in [delimiter] if delimiter else DELIMITERS:
        row = next(_rows(lines, start, candidate), None)
        if row is None:
            raise BadFile("no rows")
        if row.problem:
            problem = f"line {row.first}: {row.problem}"
        else:
            splits.append((candidate, row))
            with contextlib.suppress(BadFile):
                return candidate, row, find_columns([cell.strip() for cell in row.cells], task, named)
    if not splits:
        raise BadFile(problem)
    return *max(splits, key=lambda pair: len(pair[1].cells)), None


def _record(row: _Row, names: Sequence[str]) -> Record:
    values = zip(names, row.cells, strict=True)
    return Record(f"line {row.first}", {name: cell for name, cell in values if not nameless(name)})


def _rows(lines: Sequence[str], start: int, delimiter: str) -> Iterator[_Row]:
    """Yield the rows of lines[start:]; after a broken quote, continue on the line below its opening."""
    broken = 0
    while start < len(lines):
        below = (lines[n] for n in range(start, len(lines)))
        # skipinitialspace: in `a, "b"` the quotes delimit the cell
        reader = csv.reader(below, delimiter=delimiter, strict=True, skipinitialspace=True)
        first = start
        try:
            for cells in reader:
                yield _Row(first + 1, start + reader.line_num, cells)
                first = start + reader.line_num
        except csv.Error as error:
            last = start + reader.line_num
            opened = _opening(lines, first, last, delimiter)
            if opened + 1 == last and "end of data" not in str(error):
                problem = "text follows the closing quote of a cell: double the quotes inside a quoted cell"
            else:
                problem = f"a quote opens here and is not closed up to line {last}: close it, or remove it"
            yield _Row(opened + 1, last, [], problem)
            broken += 1
            if broken == _MOST_QUOTES:
                yield _Row(opened + 2, last, [], f"reading stopped after {broken} broken quotes")
                return
            start = opened + 1
        else:
            return


def _opening(lines: Sequence[str], first: int, last: int, delimiter: str) -> int:
    """Return the index of the line with the opening quote that makes lines[first:last] fail."""
    quoted, fresh, opened = False, True, first
    for n in range(first, last):
        line, i = lines[n], 0
        while i < len(line):
            if quoted and line[i] == '"':
                if line.startswith('""', i):
                    i += 1
                else:
                    quoted = False
                    if line[i + 1 : i + 2] not in (delimiter, "\r", "\n", ""):
                        return opened
            elif not quoted and fresh and line[i] == '"':
                quoted, opened = True, n
            fresh = not quoted and (line[i] == delimiter or (fresh and line[i] == " "))
            i += 1
        fresh = not quoted
    return opened


def _swallowed(rows: Sequence[_Row], delimiter: str, width: int, target: int, task: Task) -> dict[int, str]:
    """Return line -> problem for rows with other rows inside a cell, between an unclosed quote and a later one.

    A line inside a cell counts as a row if it has the header's width and the target of some row of one line. Numeric targets
    seldom repeat, so there all lines inside must look like rows.
    """
    known = {row.cells[target].strip() for row in rows if row.first == row.last and len(row.cells) == width}
    known.discard("")
    problems = {}
    for row in rows:
        inside = [line.split(delimiter) for line in _inner_lines(row)] if row.first < row.last else []
        targets = [cells[target].strip().strip('"') if len(cells) == width else "" for cells in inside]
        numbers = task == "regression" and bool(targets) and all(map(_is_number, targets))
        if numbers or not known.isdisjoint(targets):
            problems[row.first] = f"a quote opens here and swallows rows up to line {row.last}: close it, or remove it"
    return problems


def _inner_lines(row: _Row) -> Iterator[str]:
    """Yield the parts of a row's cells that are whole lines of the file, apart from a quote."""
    for number, cell in enumerate(row.cells):
        lines = _BREAK.split(cell)
        yield from lines[min(number, 1) : len(lines) if number == len(row.cells) - 1 else -1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _trimmed(cells: list[str], width: int) -> list[str]:
    """Return the cells without empty ones to the right of the header."""
    while len(cells) > width and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _quote_hint(row: _Row) -> str:
    return f": {brief(row.cells[-1])!r} is too many" if len(row.cells) > 1 and row.first == row.last else ""


def _unnamed(names: Sequence[str]) -> list[str]:
    numbers = [str(n) for n, name in enumerate(names, start=1) if nameless(name)]
    return [f"column {', '.join(numbers)} has no name and is left out"] if numbers else []
