"""Refreshing the taxonomy: read it again when feedback names an unknown label.

Turns a blocking read of the registry into one that the event loop can await. api.py checks feedback with it.

Reads run in a thread, one at a time and at most one each second, and callers wait for a bounded time. A registry that hangs does
not delay predictions, and feedback with unknown labels occupies at most one thread.
"""

import asyncio
import threading
import time
from collections.abc import Callable

from schemas.events import FeedbackData
from schemas.labels import LabelMap
from serving.http.feedback_values import FeedbackChecker, LabelNotInUse

EVERY_S = 1.0
WAIT_S = 2.0


class RegistryAway(ConnectionError):
    """The taxonomy could not be read in time."""


class LabelRefresh:
    """Reader of the taxonomy for one worker.

    Args:
        read: reads the labels from the registry; may block. Raises ConnectionError.
        clock: monotonic seconds.
        wait_s: longest wait of a caller.

    """

    def __init__(
        self, read: Callable[[], LabelMap], clock: Callable[[], float] = time.monotonic, wait_s: float = WAIT_S
    ) -> None:
        self._read, self._clock, self._wait_s = read, clock, wait_s
        self._reading: asyncio.Future[LabelMap] | None = None
        self._known = LabelMap()
        self._read_at = -EVERY_S

    async def labels(self) -> LabelMap:
        """Return the labels, read at most a second ago. Raises RegistryAway."""
        if self._reading is None and self._clock() - self._read_at < EVERY_S:
            return self._known
        if self._reading is None:
            self._start(asyncio.get_running_loop())
        assert self._reading is not None
        try:
            return await asyncio.wait_for(asyncio.shield(self._reading), self._wait_s)
        except TimeoutError as error:
            raise RegistryAway("the registry does not answer") from error

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        reading: asyncio.Future[LabelMap] = loop.create_future()
        self._reading = reading
        reading.add_done_callback(lambda done: done.exception())  # retrieved here, because nobody may be waiting for it

        def end(labels: LabelMap | None, error: Exception | None) -> None:
            self._reading = None
            if labels is None:
                reading.set_exception(RegistryAway(str(error)))
            else:
                self._known, self._read_at = labels, self._clock()
                reading.set_result(labels)

        def work() -> None:
            labels, failed = None, None
            try:
                labels = self._read()
            except Exception as error:
                failed = error
            try:
                loop.call_soon_threadsafe(end, labels, failed)
            except RuntimeError:
                return  # the loop has ended

        # A daemon thread: a registry that hangs does not delay the end of the process.
        threading.Thread(target=work, name="label-refresh", daemon=True).start()


async def checked_feedback(checker: FeedbackChecker, refresh: LabelRefresh, data: FeedbackData) -> FeedbackData:
    """Return the feedback in the form that is stored; read the taxonomy again before refusing a label.

    Raises:
        BadFeedback: the feedback breaks a rule.
        RegistryAway: a label is unknown and the taxonomy cannot be read.

    """
    try:
        return checker.checked(data)
    except LabelNotInUse:
        await refresh.labels()
        return checker.checked(data)
