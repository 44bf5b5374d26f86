"""Progress: is ingestion stuck, and where?

Turns successes, failures and waiting messages into one lasting trouble, within STUCK_SECONDS, and a report every
REPORT_SECONDS that the consumer lives. The consumer calls it in its loop. It never raises: it is called when things fail.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

from schemas.consumer_reports import REPORTED, STUCK, place_line
from services.ingestion.metrics import ConsumerMetrics
from services.ingestion.troubles import Troubles
from serving.registry.registry import RegistryUnavailable

log = logging.getLogger("ratchet.feedback_consumer")

STUCK_SECONDS = 18.0  # without progress, although messages wait or the same failure returns
REPORT_SECONDS = 5.0
REPEAT_SECONDS = 30.0  # between log lines


class Progress:
    """Watches one consumer, which is stuck after `stuck_after_s` seconds without progress.

    `where` returns '<topic>/<partition>' -> the offset that is stored next.
    """

    def __init__(
        self,
        troubles: Troubles,
        metrics: ConsumerMetrics,
        where: Callable[[], Mapping[str, int]],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        stuck_after_s: float = STUCK_SECONDS,
    ) -> None:
        self._stuck_after_s = stuck_after_s
        self._troubles, self._metrics, self._where, self._monotonic = troubles, metrics, where, monotonic
        self._process = f"{socket.gethostname()}/{os.getpid()}"
        self._moved_at, self._reason = monotonic(), ""
        self._last_places: Mapping[str, int] = {}
        self._report_at = self._log_at = 0.0
        self._shown = True  # a note of an earlier process with this name

    def moved(self) -> None:
        """Note that messages were stored, or that none wait."""
        self._moved_at, self._reason = self._monotonic(), ""
        self._report()

    def waits(self, reason: str) -> None:
        """Note that messages wait, and why; a failure since the last progress says more."""
        self._reason = self._reason or reason
        self._report()

    def failed(self, reason: str) -> None:
        """Note that a step failed, and why."""
        self._reason = reason
        self._report()

    def ended(self) -> None:
        """Withdraw this consumer's notes."""
        self._show({}, REPORTED)
        self._show({}, STUCK)

    @property
    def stuck_s(self) -> float:
        """Return for how many seconds there has been no progress; 0 while it is not stuck."""
        stuck_s = self._monotonic() - self._moved_at
        return stuck_s if self._reason and stuck_s >= self._stuck_after_s else 0.0

    def _report(self) -> None:
        stuck_s, now = self.stuck_s, self._monotonic()
        self._metrics.stuck.set(stuck_s)
        if stuck_s and now >= self._log_at:
            self._log_at = now + REPEAT_SECONDS
            log.error("stuck for %.0f s: nothing is stored: %s", stuck_s, self._sentence())
        known = bool(self._last_places)
        places = self._places()
        if now < self._report_at and bool(stuck_s) == self._shown and known == bool(places):
            return
        self._report_at = now + REPORT_SECONDS
        self._show({self._process: json.dumps(dict(places))}, REPORTED)
        if stuck_s or self._shown:
            detail = f"nothing has been stored for {stuck_s:.0f} s: {self._sentence()}"
            self._shown = not self._show({self._process: detail} if stuck_s else {}, STUCK) or bool(stuck_s)

    def _sentence(self) -> str:
        return f"next is {place_line(self._places())}: {self._reason}"

    def _places(self) -> Mapping[str, int]:
        """Return what is stored next; the last that was known while there is no subscription."""
        self._last_places = self._where() or self._last_places
        return self._last_places

    def _show(self, details: dict[str, str], kind: str) -> bool:
        """Replace this process's note; return whether it is written."""
        try:
            self._troubles.show(kind, details, prefix=self._process)
        except RegistryUnavailable as error:
            log.info("the state of ingestion is not written: %s", error)
            return False
        return True
