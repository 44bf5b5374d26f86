"""Redaction: passwords in addresses, and `password=...` in drivers' messages, become `***`.

The command line, the supervisor and `doctor` pass every line that they show through it.
"""

import re

_IN_ADDRESS = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*):[^\s'\"]*@", re.IGNORECASE)
_NAMED = re.compile(
    r"(?P<name>\b\w*(?:password|passwd|pwd|secret|token|access_key|api_key)\b['\"]?\s*[=:]\s*)"
    r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s&;,'\")]+)",
    re.IGNORECASE,
)


def redacted(line: str) -> str:
    """Return the line with each password replaced by `***`."""
    return _NAMED.sub(r"\g<name>***", _IN_ADDRESS.sub(r"\g<scheme>:***@", line))
