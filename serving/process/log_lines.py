"""Log format: each record is one line, whatever its content.

Turns log records into lines without control characters: a label, text or error from outside cannot begin a new line, colour a
terminal or move its cursor. Every process that logs uses it. A traceback keeps its lines, each indented.
"""

import logging
from typing import TextIO

from schemas.printable import one_line

MAX_CHARS = 4_000


class OneLine(logging.Formatter):
    """The formatter of all of Ratchet's logs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, and its traceback below it."""
        record.message = one_line(record.getMessage(), MAX_CHARS)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        trace = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        indented = [f"  {one_line(line, MAX_CHARS)}" for line in trace.splitlines()]
        return "\n".join([self.formatMessage(record), *indented])


def log_to(stream: TextIO, level: int = logging.INFO) -> None:
    """Send every record of this process at `level` and above to a stream."""
    lines = logging.StreamHandler(stream)
    lines.setFormatter(OneLine("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[lines])
