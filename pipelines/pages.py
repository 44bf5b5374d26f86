"""Pages that people look at: written beside a round, and no reason for it to stop.

Turns the text of a page into a file, or, if making it fails, a line that says so into that file and the cause into the log.
"""

import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("ratchet.pages")

_FAILED = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Not written</title></head>
<body><p>This page could not be made: the round's log says why. The numbers are in the JSON file beside it.</p></body></html>
"""


def write_page(path: Path, render: Callable[[], str]) -> None:
    """Write what `render` returns as UTF-8; half a character, which JSON may hold, becomes a question mark. Raises OSError."""
    try:
        page = render()
    except Exception:
        log.exception("%s could not be made", path.name)
        page = _FAILED
    path.write_text(page, encoding="utf-8", errors="replace")
