"""Atomic and durable writes of files.

Replaces a file by a temporary file, fsync, rename and fsync of the folder. Artefacts, settings, outboxes and the event log
use it.
"""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path


def atomic_write(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Replace a file's content durably. A reader sees either the complete old or the complete new content.

    Args:
        path: the file; its folder must exist.
        content: the new content; text is written as UTF-8.
        mode: permissions of the new file, less the umask.

    Raises:
        OSError: the write failed; the old file is unchanged and no temporary file is left.

    """
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write; rename it durably to `path` unless the block fails. Raises OSError."""
    temporary = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(paths: Iterable[Path]) -> None:
    """Sync each path to disk, in order. Raises OSError."""
    for path in paths:
        sync(path)
