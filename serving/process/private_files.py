"""Private files: only the process's user can read what it writes.

Sets the process's umask, so that new files have mode 0600 and folders 0700. Every entry point calls it first: registry, event
log, logs and reports hold texts that people wrote.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

OTHERS = 0o077


def keep_private() -> None:
    """Deny group and others all access to files that this process and its children create."""
    os.umask(OTHERS)


def close_folders(folders: Iterable[Path]) -> None:
    """Remove the permissions of group and others from existing folders; skip those that cannot be changed."""
    for folder in folders:
        with contextlib.suppress(OSError):  # another user's, or absent
            mode = folder.stat().st_mode & 0o777
            if folder.is_dir() and mode & OTHERS:
                folder.chmod(mode & ~OTHERS)
