"""The state file: where the parts of a running `ratchet up` are.

Turns addresses, process ids and troubles into state/up.json, which `ratchet status`, `doctor` and others read. The supervisor
writes it whenever they change.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

RETRY_S = 2.0


class StateFile:
    """Writes the supervisor's state when it changes; after a failure it tries again every RETRY_S seconds."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._written: Mapping[str, object] | None = None
        self._retry_at = 0.0

    def write(self, state: Mapping[str, object]) -> None:
        """Write `state` if it differs from the file or the file has vanished; warn once while that fails."""
        now = time.monotonic()
        if now < self._retry_at or (state == self._written and self._path.exists()):
            return
        beside = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(state), encoding="utf-8")
            beside.replace(self._path)
        except OSError as error:
            if self._retry_at <= 0:
                self._warn(str(error.strerror))
            self._retry_at = now + RETRY_S
        else:
            self._written, self._retry_at = state, 0.0

    def remove(self) -> None:
        """Remove the file; if that fails, readers still ignore it without the project's lock."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
