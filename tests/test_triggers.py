"""When a round is due: every trigger on its own, and what holds one back."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.triggers import TriggerState, decide, refuse_unbuilt
from schemas.setting_groups import TriggerSettings
from schemas.settings import SettingsError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def state(
    feedback: int = 0, *, age: timedelta | None = None, unfinished: bool = False, failures: int = 0, cron: bool = False
) -> TriggerState:
    return TriggerState(
        labelled_feedback=feedback,
        idle=age,
        unfinished=unfinished,
        failures=failures,
        cron_due=cron,
    )


@pytest.mark.parametrize(("feedback", "fires", "progress"), [(0, False, 0.0), (49, False, 0.49), (100, True, 1.0)])
def test_enough_feedback_fires(feedback: int, fires: bool, progress: float) -> None:
    decision = decide(state(feedback), TriggerSettings(min_feedback=100), NOW)
    assert (decision.fire, decision.progress) == (fires, progress)
    assert f"{feedback} of 100" in decision.reason


def test_an_unfinished_round_holds_everything_back() -> None:
    policy = TriggerSettings(min_feedback=1, max_age=1, cron="* * * * *")
    decision = decide(state(500, age=timedelta(days=9), unfinished=True, cron=True), policy, NOW)
    assert not decision.fire
    assert "unfinished" in decision.reason


@pytest.mark.parametrize(
    ("feedback", "age", "fires"),
    [(1, timedelta(hours=5), True), (0, timedelta(hours=5), False), (1, timedelta(hours=3), False), (1, None, False)],
)
def test_age_fires_only_if_there_is_feedback(feedback: int, age: timedelta | None, fires: bool) -> None:
    decision = decide(state(feedback, age=age), TriggerSettings(min_feedback=100, max_age=4), NOW)
    assert decision.fire is fires
    if fires:
        assert "5.0 hours" in decision.reason


def test_age_counts_towards_progress() -> None:
    decision = decide(state(1, age=timedelta(hours=3)), TriggerSettings(min_feedback=100, max_age=4), NOW)
    assert decision.progress == pytest.approx(0.75)


def test_cron_fires_when_due() -> None:
    policy = TriggerSettings(cron="0 3 * * *")
    assert not decide(state(), policy, NOW).fire
    assert not decide(state(cron=True), policy, NOW).fire, "without new feedback there is nothing to learn"
    decision = decide(state(1, cron=True), policy, NOW)
    assert decision.fire
    assert "0 3 * * *" in decision.reason


@pytest.mark.parametrize(("failures", "minutes"), [(1, 1), (2, 5), (3, 30), (9, 30)])
def test_failed_rounds_are_tried_again_with_growing_delay(failures: int, minutes: int) -> None:
    policy = TriggerSettings(min_feedback=1)
    early = decide(state(5, age=timedelta(minutes=minutes, seconds=-1), failures=failures), policy, NOW)
    assert not early.fire
    assert "12:00:01 UTC" in early.reason
    assert decide(state(5, age=timedelta(minutes=minutes), failures=failures), policy, NOW).fire


def test_drift_is_refused_because_nothing_watches_it() -> None:
    refuse_unbuilt(TriggerSettings())
    with pytest.raises(SettingsError, match=r"triggers\.drift = 0\.2"):
        refuse_unbuilt(TriggerSettings(drift=0.2))


@given(
    feedback=st.integers(0, 10_000),
    hours=st.none() | st.floats(-10, 10_000),
    failures=st.integers(0, 20),
    unfinished=st.booleans(),
    cron=st.booleans(),
    minimum=st.integers(1, 1000),
    max_age=st.none() | st.floats(0.1, 1000),
)
def test_whatever_it_sees_it_decides_sensibly(
    feedback: int,
    hours: float | None,
    failures: int,
    unfinished: bool,
    cron: bool,
    minimum: int,
    max_age: float | None,
) -> None:
    policy = TriggerSettings(min_feedback=minimum, max_age=max_age)
    age = None if hours is None else timedelta(hours=hours)
    seen = state(feedback, age=age, unfinished=unfinished, failures=failures, cron=cron)
    decision = decide(seen, policy, NOW)
    assert 0 <= decision.progress <= 1
    assert decision.reason
    assert not (decision.fire and unfinished)
    if decision.fire:
        assert decision.progress == 1
