"""Signals that ask a process to stop, and waits that a stop ends.

Turns SIGTERM, SIGINT and SIGHUP into an event that main loops wait for. A signal that was ignored at the start (`nohup`, a
shell's background job) stays ignored.
"""

import logging
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger("ratchet.start")

FIRST_DELAY, LONGEST_DELAY = 0.5, 5.0  # seconds between tries
T = TypeVar("T")


def stop_on(stop: threading.Event, *numbers: signal.Signals) -> None:
    """Set `stop` when one of the signals arrives, unless it is ignored now. Call it from the main thread."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())


def opened(make: Callable[[], T], stop: threading.Event) -> T:
    """Return what `make` opens, retried with growing delay. Raises SystemExit once `stop` is set."""
    delay = FIRST_DELAY
    while not stop.is_set():
        try:
            return make()
        except OSError as error:
            log.warning("%s: trying again in %.1f s", error, delay)
        stop.wait(delay)
        delay = min(delay * 2, LONGEST_DELAY)
    raise SystemExit(0)
