"""Watch over the feedback consumers: name the one that hangs, which cannot say so itself.

Turns the consumers' reports in the registry into lines for the supervisor (up.py). A consumer that fails writes a line into its
own log, which the supervisor shows; a frozen one writes nothing. The registry is read in a thread of its own, because a locked
one takes seconds.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from services.ingestion.troubles import silence_of
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.up")

LOOK_S = 2.0
REPEAT_LOOKS = 15  # between two lines about the same silence


class IngestionWatch:
    """Calls `tell` with a line when the consumers fall silent, every half minute while they are, and when they report again."""

    def __init__(
        self, open_registry: Callable[[], Registry], tell: Callable[[str], None], look_s: float = LOOK_S
    ) -> None:
        self._open, self._tell, self._look_s = open_registry, tell, look_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingestion watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop to watch, and wait for the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._look_s + 1)

    def _run(self) -> None:
        silent_looks = 0
        with contextlib.closing(self._open()) as registry:
            while not self._stop.wait(self._look_s):
                try:
                    notes = [note.model_dump(mode="json") for note in registry.ingestion()]
                except ConnectionError as error:  # the parts that need the registry say so
                    log.info("the consumers' reports cannot be read: %s", error)
                    continue
                silent = silence_of(notes, datetime.now(UTC))
                if silent is not None and silent_looks % REPEAT_LOOKS == 0:
                    self._tell(str(silent))
                if silent is None and silent_looks:
                    self._tell("reports again")
                silent_looks = silent_looks + 1 if silent is not None else 0
