"""Triggers: is a round due?

Turns what has gathered into a decision with its reason. Pure; the training scheduler asks at every tick.
"""

from dataclasses import dataclass
from datetime import datetime

from schemas.settings import TriggerSettings

RETRY_MINUTES = (1, 5, 30)


@dataclass(frozen=True, kw_only=True)
class TriggerState:
    """What the scheduler saw: counts since the last round's cut, and how the last rounds ended."""

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


def decide(state: TriggerState, policy: TriggerSettings, now: datetime) -> TriggerDecision:
    """The first trigger that fires: feedback, age, cron. Failed rounds are retried with growing delay."""
    share = min(1.0, state.labelled_feedback / policy.min_feedback)
    counted = f"{state.labelled_feedback} of {policy.min_feedback} labelled feedback since the last round"
    if state.unfinished:
        return TriggerDecision(False, share, "a round is unfinished")
    age_s = (now - state.last_round_at).total_seconds() if state.last_round_at else None
    if state.failures and age_s is not None:
        wait_s = 60 * RETRY_MINUTES[min(state.failures, len(RETRY_MINUTES)) - 1]
        if age_s < wait_s:
            return TriggerDecision(False, share, f"waiting {wait_s - age_s:.0f} s after {state.failures} failed rounds")
    if state.labelled_feedback >= policy.min_feedback:
        return TriggerDecision(True, 1.0, counted)
    if policy.max_age and age_s is not None and state.labelled_feedback and age_s >= policy.max_age * 3600:
        return TriggerDecision(True, 1.0, f"{age_s / 3600:.1f} hours since the last round, and there is feedback")
    if state.cron_due:
        return TriggerDecision(True, 1.0, f"due by cron {policy.cron!r}")
    return TriggerDecision(False, share, counted)
