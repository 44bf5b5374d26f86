"""Triggers: decide whether a round is due.

Turns the scheduler's counts into a decision with its reason. The training scheduler calls `decide` at every tick. Pure functions:
counts and time are passed in.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from schemas.setting_groups import TriggerSettings
from schemas.settings import SettingsError

RETRY_MINUTES = (1, 5, 30)


@dataclass(frozen=True, kw_only=True)
class TriggerState:
    """What the scheduler knows at a tick.

    `labelled_feedback` counts since the last round's cut. `idle` is the time since the last round ended or was claimed, None
    before the first. `failures` counts rounds that failed in a row, `cron_due` tells whether a crontab's time has passed.
    """

    labelled_feedback: int
    idle: timedelta | None
    unfinished: bool
    failures: int
    cron_due: bool = False


@dataclass(frozen=True)
class TriggerDecision:
    """Whether to start a round, the progress of the nearest trigger (0 to 1), and the reason."""

    fire: bool
    progress: float
    reason: str


def refuse_unbuilt(policy: TriggerSettings) -> None:
    """Raise SettingsError if a trigger is set that is not implemented; ignoring it would look like "no drift"."""
    if policy.drift is not None:
        raise SettingsError(f"triggers.drift = {policy.drift}: this trigger is not implemented yet; leave it unset")


def decide(state: TriggerState, policy: TriggerSettings, now: datetime) -> TriggerDecision:
    """Return the first trigger that fires: feedback, age, cron. Failed rounds are retried with growing delay.

    `now` only serves to name the time of the next retry in the reason.
    """
    share = min(1.0, state.labelled_feedback / policy.min_feedback)
    reason = f"{state.labelled_feedback} of {policy.min_feedback} labelled feedback since the last round"
    if state.unfinished:
        return TriggerDecision(False, share, "a round is unfinished")
    if state.failures and state.idle is not None:
        left = timedelta(minutes=RETRY_MINUTES[min(state.failures, len(RETRY_MINUTES)) - 1]) - state.idle
        if left > timedelta():
            failed = f"{state.failures} failed in a row" if state.failures > 1 else "the last round failed"
            return TriggerDecision(False, share, f"{failed}: waiting until {now + left:%H:%M:%S} UTC")
    if state.labelled_feedback >= policy.min_feedback:
        return TriggerDecision(True, 1.0, reason)
    if policy.max_age and state.idle is not None and state.labelled_feedback:
        hours = state.idle.total_seconds() / 3600
        if hours >= policy.max_age:
            return TriggerDecision(True, 1.0, f"{hours:.1f} hours since the last round, and there is feedback")
        share = max(share, hours / policy.max_age)
    if state.cron_due and state.labelled_feedback:
        return TriggerDecision(True, 1.0, f"due by cron {policy.cron!r}, and there is feedback")
    return TriggerDecision(False, max(0.0, share), reason)
