"""The state file: where the parts of a running `ratchet up` are.

Turns addresses, process ids and troubles into state/up.json, which `ratchet status`, `doctor` and others read. The supervisor
writes it whenever they change, also while the disk is full: the file is padded, so that a longer state fits in its place.
"""

import contextlib
import errno
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

RETRY_S = 2.0
ROOM = 4096  # bytes, to a multiple of which the file is padded with spaces


class StateFile:
    """Writes the supervisor's state when it changes; after a failure it tries again every `retry_s` seconds."""

    def __init__(self, path: Path, warn: Callable[[str], None], *, retry_s: float = RETRY_S) -> None:
        self._path = path
        self._warn = warn
        self._retry_s = retry_s
        self._written: Mapping[str, object] | None = None
        self._retry_at = 0.0

    def write(self, state: Mapping[str, object]) -> None:
        """Write `state` if it differs from the file or the file has vanished; warn once while that fails."""
        now = time.monotonic()
        if now < self._retry_at or (state == self._written and self._path.exists()):
            return
        text = json.dumps(state).encode()
        text = text.ljust(-(-len(text) // ROOM) * ROOM)
        try:
            self._replace(text)
        except OSError as error:
            if self._retry_at <= 0:
                self._warn(str(error.strerror))
            self._retry_at = now + self._retry_s
        else:
            self._written, self._retry_at = state, 0.0

    def _replace(self, text: bytes) -> None:
        """Replace the file, or on a full disk its content, for which no new room is needed. Raises OSError."""
        beside = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(text)
            beside.replace(self._path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(text) != self._path.stat().st_size:
                raise
            with self._path.open("r+b", buffering=0) as file:
                file.write(text)

    def remove(self) -> None:
        """Remove the file; if that fails, readers still ignore it without the project's lock."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
