"""Define what every reader returns: `Table` and `Record`; and `BadFile`, `Columns` and the wording of counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_LISTED = 5  # bad rows listed in a message; all are counted
MOST_CHARS = 120  # of a value inside a message


class BadFile(ValueError):
    """A file that cannot be read as labelled rows; the message names file, line, content and what was expected."""


@dataclass(frozen=True)
class Columns:
    """The configured columns of text and target; None: detect by name."""

    text: str | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One record and its position, such as "line 7"; of several lines, the first."""

    where: str
    values: dict[str, object]


@dataclass
class Table:
    """The records of one file, problems of those that cannot be read, and notes on odd ones."""

    columns: list[str]
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def listed(problems: Sequence[str]) -> str:
    """Return one line that counts all problems and lists the first few."""
    if len(problems) == 1:
        return problems[0]
    more = f"; and {len(problems) - MOST_LISTED} more" if len(problems) > MOST_LISTED else ""
    return f"{len(problems)} rows cannot be read: {'; '.join(problems[:MOST_LISTED])}{more}"


def counted(rows: int) -> str:
    """Return "1 row" or "3 rows"."""
    return f"{rows} row{'' if rows == 1 else 's'}"


def brief(value: object) -> str:
    """Return a value for a message: on one line, at most MOST_CHARS characters."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}..."
