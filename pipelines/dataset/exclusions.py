"""Rows of files that somebody took out: known by their text, whatever file or place they move to.

Turns rows into keys and into the rows that stay. A project's dataset is built without them, `ratchet dataset exclude` finds and
names them. It deliberately changes no file: the registry holds the keys.
"""

import hashlib
from collections.abc import Iterable, Sequence

from pipelines.dataset.clean import tidy
from pipelines.dataset.files import FileRow


def row_key(text: str) -> str:
    """Return the key of a text: the first 16 hex digits of the SHA-256 of its tidied form."""
    return hashlib.sha256(tidy(text).encode("utf-8", "replace")).hexdigest()[:16]


def kept(rows: Sequence[FileRow], without: frozenset[str]) -> list[FileRow]:
    """Return the rows that nobody took out."""
    return [row for row in rows if row_key(row.text) not in without] if without else list(rows)


def found(rows: Iterable[FileRow], words: str) -> list[FileRow]:
    """Return the rows whose text holds these words, or whose key begins with them."""
    wanted = words.casefold()
    return [row for row in rows if wanted in row.text.casefold() or row_key(row.text).startswith(wanted)]
