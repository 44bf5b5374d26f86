r"""Printable text: any text as one line without control characters.

Logs, plots and messages use it for text from outside, the console and `ratchet status` for durations. Characters that end a
line, control a terminal or change the writing direction are shown as escapes, such as \n or \u202e.
"""

import re

# C0 and C1 controls, separators of lines and paragraphs, bidirectional controls (UAX #9), lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def one_line(text: str, most: int | None = None) -> str:
    """Return `text` with unprintable characters escaped, cut to `most` characters."""
    if most is not None and len(text) > most:
        text = f"{text[: most - 1]}…"
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def span(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
