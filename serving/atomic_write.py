"""Files that appear whole or not at all, and stay after a power cut.

Turns bytes into a file: write beside it, fsync, rename, fsync the folder. Artefacts, settings, outboxes and the event
log use it. It deliberately doesn't know what the bytes mean.
"""

import contextlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def atomic_write(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Replace a file's content durably; text is written as UTF-8. A reader sees the old or the new content, whole.

    Args:
        path: the file; its folder must exist.
        content: what it shall hold.
        mode: permissions of the new file, less the umask.

    Raises:
        OSError: the disk refuses; the old file is unchanged and nothing is left beside it.

    """
    beside = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(paths: Iterable[Path]) -> None:
    """`sync` each path, in order. Raises OSError."""
    for path in paths:
        sync(path)
