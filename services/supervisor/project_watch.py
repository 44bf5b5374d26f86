"""Watch over a running project: name what cannot say so itself, a consumer that hangs and a disk that is nearly full.

Turns the consumers' reports in the registry and the free disk space into lines for the supervisor (up.py). A consumer that fails
writes a line into its own log, which the supervisor shows; a frozen one writes nothing. A full disk harms no part at once. The
registry is read in a thread of its own, because a locked one takes seconds.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from schemas.settings import Settings
from services.ingestion.troubles import silence_of
from services.rounds.disk_room import nearly_full
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.up")

LOOK_S = 2.0
REPEAT_LOOKS = 15  # between two lines about the same trouble


class ProjectWatch:
    """Calls `tell` with a part and a line when it is in trouble, every half minute while it is, and when it no longer is."""

    def __init__(self, settings: Settings, tell: Callable[[str, str], None], look_s: float = LOOK_S) -> None:
        self._settings, self._tell, self._look_s = settings, tell, look_s
        self._looks: dict[str, int] = {}  # part -> looks since it is in trouble
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="project watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop to watch, and wait for the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._look_s + 1)

    def _run(self) -> None:
        with contextlib.closing(Registry(self._settings.registry_url, self._settings.model.name)) as registry:
            while not self._stop.wait(self._look_s):
                self._report("disk", nearly_full(self._settings), "there is room again")
                try:
                    notes = [note.model_dump(mode="json") for note in registry.ingestion()]
                except ConnectionError as error:  # the parts that need the registry say so
                    log.info("the consumers' reports cannot be read: %s", error)
                    continue
                self._report("consumer", silence_of(notes, datetime.now(UTC)), "reports again")

    def _report(self, part: str, trouble: object | None, passed: str) -> None:
        looks = self._looks.get(part, 0)
        if trouble is not None and looks % REPEAT_LOOKS == 0:
            self._tell(part, str(trouble))
        if trouble is None and looks:
            self._tell(part, passed)
        self._looks[part] = looks + 1 if trouble is not None else 0
