"""`triggers.cron`: a five-field crontab, in UTC.

Turns the text into APScheduler's trigger, for the training scheduler and preflight. Week days are those of crontab(5): 0 and 7
are Sunday, whereas APScheduler counts from Monday.
"""

import re
from datetime import UTC, datetime

from apscheduler.triggers.cron import CronTrigger

from schemas.settings import SettingsError

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SPAN = re.compile(r"(\*|([0-7])(?:-([0-7]))?)(?:/([1-7]))?")


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
