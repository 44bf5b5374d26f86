"""Private files: what our processes write can be read by their own user alone.

Turns a process's file mode creation mask into 0600 for files and 0700 for folders. Every entry point calls it first, so that no
writer has to think of modes: texts, registry, event log, logs and reports all hold what people wrote.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

OTHERS = 0o077


def keep_private() -> None:
    """Give files that this process and its children make no permission for group and others."""
    os.umask(OTHERS)


def close_folders(folders: Iterable[Path]) -> None:
    """Take the permissions of group and others from folders that an earlier version or another program made."""
    for folder in folders:
        with contextlib.suppress(OSError):  # another user's, or not there: then it is not ours to close
            mode = folder.stat().st_mode & 0o777
            if folder.is_dir() and mode & OTHERS:
                folder.chmod(mode & ~OTHERS)
