"""The newest version of a Delta table in a folder, by the names of its commits and checkpoints; none is read.

event_log.py and the counts of `ratchet status` call it. It imports no Delta and no Arrow, which would cost a command seconds.
"""

import contextlib
import os
import re
from pathlib import Path

LOG = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.(?:json|checkpoint\.parquet)")


def newest_version(table: Path) -> int | None:
    """Return the newest version; None where the folder cannot be listed or has no commit."""
    with contextlib.suppress(OSError):
        names = os.listdir(table / LOG)
        return max((int(match[1]) for name in names if (match := _COMMIT.fullmatch(name))), default=None)
    return None
