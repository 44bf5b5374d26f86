"""`triggers.cron`: a five-field crontab, in UTC.

Turns the text into APScheduler's trigger, for the training scheduler and preflight. Week days are those of crontab(5): 0 and 7
are Sunday, whereas APScheduler counts from Monday.
"""

import re
from datetime import UTC, datetime, timedelta

from apscheduler.triggers.cron import CronTrigger

from schemas.settings import SettingsError

SLACK = timedelta(minutes=1)  # a clock set back by less repeats no time of a crontab
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SPAN = re.compile(r"(\*|([0-7])(?:-([0-7]))?)(?:/([1-7]))?")


class Crontab:
    """The times of `triggers.cron` that have come since a scheduler began and since the newest round; None: there are none."""

    def __init__(self, text: str | None, now: datetime) -> None:
        self._trigger = crontab(text) if text else None
        self._since = now
        self._seen: datetime | None = None

    def due(self, now: datetime, newest_round: datetime | None) -> bool:
        """Return whether a time has come. A round that anybody claimed after it has used it up."""
        if self._trigger is None:
            return False
        if newest_round is not None and newest_round != self._seen:
            self._seen, self._since = newest_round, max(self._since, newest_round)
        if now < self._since - SLACK:  # the clock was set back: its times come again
            self._since = now
        due = self._trigger.get_next_fire_time(None, self._since)
        return due is not None and due <= now

    def use(self, now: datetime) -> None:
        """Count every time up to now as used: this scheduler has claimed a round."""
        self._since = now


def crontab(text: str) -> CronTrigger:
    """Return the trigger of a crontab. Raises SettingsError if it does not parse or is never due."""
    fields = text.split()
    if len(fields) == 5:
        fields[4] = ",".join(map(_weekdays, fields[4].split(",")))
    try:
        trigger = CronTrigger.from_crontab(" ".join(fields), timezone="UTC")
    except ValueError as error:
        way_out = "expected five fields (minute hour day month weekday, in UTC) such as '0 3 * * 0'"
        raise SettingsError(f"triggers.cron = {text!r}: {error}; {way_out}") from error
    if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise SettingsError(f"triggers.cron = {text!r}: there is no such day; unset it, or name a day that exists")
    return trigger


def _weekdays(part: str) -> str:
    """Return one entry of the weekday field with numbers replaced by day names."""
    match = _SPAN.fullmatch(part)
    if not match or part == "*":
        return part
    first, last, step = match[2], match[3], int(match[4] or 1)
    if first is None:
        days = range(0, 7, step)
    else:
        end = int(last) if last is not None else 6 if match[4] else int(first)
        days = range(int(first), end + 1, step)
    return ",".join(dict.fromkeys(_DAYS[day % 7] for day in days)) or part
