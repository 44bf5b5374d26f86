"""The queue filler: starts `ratchet queue fill`, a niced process, when it may add something to the labelling queue.

Turns the registry's settling round and the time since the last fill into a process. The training scheduler calls `tick`. It loads
neither models nor the feature store; the process does (queue_filling.py).
"""

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from schemas.records import RoundRecord
from schemas.settings import Settings
from services.rounds.executor import start_niced
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.training_scheduler")

LOG = "state/logs/queue.log"
EVERY_S = 60.0  # between two fills while a round is settling
AUDIT_EVERY_S = 600.0  # between two fills for the audit sample alone


def wants_items(registry: Registry, record: RoundRecord) -> bool:
    """Return whether a settling round has fewer items left than it may need."""
    assert record.settling is not None
    progress = registry.queue.progress(record.round_id)
    return progress.open < record.settling.horizon


class QueueFiller:
    """Starts `ratchet queue fill` when it may add something; one at a time."""

    def __init__(
        self, settings: Settings, config: Path, registry: Registry, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._config, self._registry = settings, config, registry
        self._monotonic = monotonic
        self._child: subprocess.Popen[bytes] | None = None
        self._last: float | None = None

    def tick(self) -> None:
        """Start a fill if one is due."""
        if self._child is not None:
            if self._child.poll() is None:
                return
            if self._child.returncode:
                log.warning("the labelling queue was not filled (exit %d): %s says why", self._child.returncode, LOG)
            self._child = None
        if self._registry.champion() is None:
            return
        record = self._registry.settling_round()
        wanted = record is not None and wants_items(self._registry, record)
        now, every = self._monotonic(), EVERY_S if wanted else AUDIT_EVERY_S
        if not wanted and not self._settings.dataset.audit_rate:
            return
        if self._last is None or now - self._last >= every:
            self._last = now
            self._child = self._start()

    def close(self) -> None:
        """End a running fill."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(5)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "services.cli.main", "queue", "fill", "-c", str(self._config.absolute())]
        return start_niced(command, self._settings, self._settings.path(LOG))
