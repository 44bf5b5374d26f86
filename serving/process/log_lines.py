"""Log lines: one record is one line, whatever stands in it.

Turns log records into lines in which a label, a text or an error from outside cannot begin another line, colour a terminal or
move its cursor. Every process that logs sets it up. A traceback, which Python writes, keeps its lines; each is indented.
"""

import logging
from typing import TextIO

from schemas.printable import one_line

MOST_CHARS = 4_000


class OneLine(logging.Formatter):
    """The formatter of all our logs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, and its traceback below it."""
        record.message = one_line(record.getMessage(), MOST_CHARS)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        trace = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        indented = [f"  {one_line(line, MOST_CHARS)}" for line in trace.splitlines()]
        return "\n".join([self.formatMessage(record), *indented])


def log_to(stream: TextIO, level: int = logging.INFO) -> None:
    """Send every record of this process at `level` and above to a stream."""
    lines = logging.StreamHandler(stream)
    lines.setFormatter(OneLine("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[lines])
