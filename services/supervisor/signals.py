"""Signals that ask a process to stop.

Turns SIGTERM, SIGINT and SIGHUP into an event that main loops wait for. A signal that was ignored at the start (`nohup`, a
shell's background job) stays ignored.
"""

import signal
import threading


def stop_on(stop: threading.Event, *numbers: signal.Signals) -> None:
    """Set `stop` when one of the signals arrives, unless it is ignored now. Call it from the main thread."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())
