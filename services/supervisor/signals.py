"""Signals that ask a process to stop.

Turns SIGTERM, SIGINT and SIGHUP into an event that main loops wait for. Whoever started a process with a signal ignored
(`nohup`, a shell's background job) meant it: it stays ignored.
"""

import signal
import threading


def stop_on(stop: threading.Event, *numbers: signal.Signals) -> None:
    """Set `stop` when one of the signals comes; one that is ignored stays ignored. From the main thread."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())
