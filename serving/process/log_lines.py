"""Log format: each record is one line, whatever its content.

Turns log records into lines without control characters: a label, text or error from outside cannot begin a new line, colour a
terminal or move its cursor. Every process that logs uses it. A traceback keeps its lines, each indented; as JSON it is a field.
"""

import json
import logging
import time
from datetime import UTC, datetime
from typing import Literal, TextIO

from schemas.printable import one_line

MAX_CHARS = 4_000
LogFormat = Literal["line", "json"]


class OneLine(logging.Formatter):
    """The formatter of all of Ratchet's logs. Times are UTC: no hour comes twice."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s,%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, and its traceback below it."""
        record.message = one_line(record.getMessage(), MAX_CHARS)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        trace = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        indented = [f"  {one_line(line, MAX_CHARS)}" for line in trace.splitlines()]
        return "\n".join([self.formatMessage(record), *indented])


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, logger, pid, message, and trace after an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": one_line(record.getMessage(), MAX_CHARS),
        }
        if trace := record.exc_text or (self.formatException(record.exc_info) if record.exc_info else ""):
            entry["trace"] = [one_line(line, MAX_CHARS) for line in trace.splitlines()]
        return json.dumps(entry, ensure_ascii=False)


def formatter(log_format: LogFormat, line: str = "%(asctime)s %(name)s %(message)s") -> logging.Formatter:
    """Return the formatter of `observability.log_format`; `line` is the layout of the format for people."""
    return JsonLines() if log_format == "json" else OneLine(line)


def log_to(stream: TextIO, level: int = logging.INFO, *, log_format: LogFormat = "line") -> None:
    """Send every record of this process at `level` and above to a stream; a later call replaces an earlier one."""
    lines = logging.StreamHandler(stream)
    lines.setFormatter(formatter(log_format))
    logging.basicConfig(level=level, handlers=[lines], force=True)
