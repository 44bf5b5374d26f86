"""Write HTML pages beside a round, whose failure does not stop it."""

import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("ratchet.pages")

_FAILED = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Not written</title></head>
<body><p>This page could not be rendered: the log has the error. The numbers are in the JSON file beside it.</p></body></html>
"""


def write_page(path: Path, render: Callable[[], str]) -> None:
    """Write the rendered page as UTF-8; if rendering fails, write a notice and log the error. Raises OSError.

    Unpaired surrogates, which JSON may contain, become question marks.
    """
    try:
        page = render()
    except Exception:
        log.exception("%s could not be rendered", path.name)
        page = _FAILED
    path.write_text(page, encoding="utf-8", errors="replace")
