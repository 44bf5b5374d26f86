"""Leave out rows of files that were excluded by their text, in whatever file they are.

`ratchet dataset exclude` finds rows and stores their keys in the registry; project_dataset.py builds without them. Files stay
as they are.
"""

import hashlib
from collections.abc import Iterable, Sequence

from pipelines.dataset.files import FileRow
from serving.inference.normalise import tidy


def row_key(text: str) -> str:
    """Return the key of a text: the first 16 hex digits of the SHA-256 of its tidied form."""
    return hashlib.sha256(tidy(text).encode("utf-8", "replace")).hexdigest()[:16]


def kept(rows: Sequence[FileRow], without: frozenset[str]) -> list[FileRow]:
    """Return the rows that are not excluded."""
    return [row for row in rows if row_key(row.text) not in without] if without else list(rows)


def rows_matching(rows: Iterable[FileRow], words: str) -> list[FileRow]:
    """Return the rows whose text contains `words`, or whose key begins with it; case is ignored."""
    wanted = words.casefold()
    return [row for row in rows if wanted in row.text.casefold() or row_key(row.text).startswith(wanted)]
