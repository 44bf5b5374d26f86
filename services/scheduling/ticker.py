"""Ticks at a fixed interval, by APScheduler, even if the wall clock is set.

Calls a function every few seconds in a thread, for training_scheduler.py. APScheduler waits for a time of the wall clock, so a
clock that is set back would delay the next tick; `run` notices a tick beyond the interval and brings it forward.
"""

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler

from schemas.events import utc_now

STOP_SECONDS = 3.0
_JOB = "tick"


class Ticker:
    """Calls `tick` every `seconds`, never twice at once; missed ticks count as one."""

    def __init__(self, tick: Callable[[], None], seconds: float, clock: Callable[[], datetime] = utc_now) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # else a long tick logs a warning
        self._seconds, self._clock = seconds, clock
        self._scheduler = BackgroundScheduler(timezone="UTC")
        self._scheduler.add_job(
            tick,
            "interval",
            id=_JOB,
            seconds=seconds,
            next_run_time=clock(),
            misfire_grace_time=None,
            coalesce=True,
            max_instances=1,
        )

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` is set, then wait for a running tick, STOP_SECONDS at most."""
        self._scheduler.start()
        while not stop.wait(self._seconds):
            self.catch_up()
        closing = threading.Thread(target=self._scheduler.shutdown, daemon=True)
        closing.start()
        closing.join(STOP_SECONDS)

    def catch_up(self) -> bool:
        """Bring the next tick forward if the clock was set back since it was planned; return whether it was."""
        job = self._scheduler.get_job(_JOB)
        if job is None or job.next_run_time is None:
            return False
        if job.next_run_time - self._clock() <= timedelta(seconds=2 * self._seconds):
            return False
        self._scheduler.modify_job(_JOB, next_run_time=self._clock())
        return True
