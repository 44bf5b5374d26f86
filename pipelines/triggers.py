"""Triggers: is a round due?

Turns what has gathered into a decision with its reason. The training scheduler asks at every tick. Pure: it deliberately
knows neither where the counts come from nor what time it is.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from schemas.settings import SettingsError, TriggerSettings

RETRY_MINUTES = (1, 5, 30)


@dataclass(frozen=True, kw_only=True)
class TriggerState:
    """What the scheduler saw.

    `labelled_feedback` counts since the last round's cut, `last_round_at` is when the last round ended (or was claimed),
    `failures` how many failed since one did not, `cron_due` whether a crontab's time has passed since the last claim.
    """

    labelled_feedback: int
    last_round_at: datetime | None
    unfinished: bool
    failures: int
    cron_due: bool = False


@dataclass(frozen=True)
class TriggerDecision:
    """Whether to start a round, how far the nearest trigger is (0 to 1), and why."""

    fire: bool
    progress: float
    reason: str


def refuse_unbuilt(policy: TriggerSettings) -> None:
    """Raise SettingsError if a trigger is set that does not exist yet: silence would look like "no drift"."""
    if policy.drift is not None:
        raise SettingsError(f"triggers.drift = {policy.drift}: drift is not watched yet, leave it unset")


def decide(state: TriggerState, policy: TriggerSettings, now: datetime) -> TriggerDecision:
    """The first trigger that fires: feedback, age, cron. Failed rounds are retried with growing delay."""
    share = min(1.0, state.labelled_feedback / policy.min_feedback)
    reason = f"{state.labelled_feedback} of {policy.min_feedback} labelled feedback since the last round"
    if state.unfinished:
        return TriggerDecision(False, share, "a round is unfinished")
    age = now - state.last_round_at if state.last_round_at else None
    if state.failures and state.last_round_at:
        again = state.last_round_at + timedelta(minutes=RETRY_MINUTES[min(state.failures, len(RETRY_MINUTES)) - 1])
        if now < again:
            failed = f"{state.failures} failed in a row" if state.failures > 1 else "the last round failed"
            return TriggerDecision(False, share, f"{failed}: waiting until {again:%H:%M:%S} UTC")
    if state.labelled_feedback >= policy.min_feedback:
        return TriggerDecision(True, 1.0, reason)
    if policy.max_age and age is not None and state.labelled_feedback:
        hours = age.total_seconds() / 3600
        if hours >= policy.max_age:
            return TriggerDecision(True, 1.0, f"{hours:.1f} hours since the last round, and there is feedback")
        share = max(share, hours / policy.max_age)
    if state.cron_due:
        return TriggerDecision(True, 1.0, f"due by cron {policy.cron!r}")
    return TriggerDecision(False, max(0.0, share), reason)
