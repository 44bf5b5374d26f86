"""Scheduling: what fails is said again while it lasts, and a time of a crontab starts one round, whoever claims it."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.records import RoundState
from schemas.setting_groups import TriggerSettings
from schemas.settings import Settings
from services.rounds.executor import LocalExecutor
from services.rounds.queue_filler import LOG, QueueFiller
from services.scheduling.crontab import SLACK, Crontab
from services.training_scheduler import REPEAT_SECONDS, TrainingScheduler
from serving.registry.registry import Registry
from tests.support.fakes import wait_until
from tests.support.registries import START, Clock, add_versions
from tests.support.stored_rows import append, prediction_row, said

NIGHTLY = "0 3 * * *"
NIGHT = START + timedelta(hours=15)  # the first time of NIGHTLY after the clocks' start at noon
HOUR, DAY = timedelta(hours=1), timedelta(days=1)

MakeScheduler = Callable[[str], TrainingScheduler]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(settings: Settings, registry: Registry, clock: Clock) -> Iterator[Registry]:
    """The project's registry on the test's clock."""
    opened = Registry(settings.registry_url, settings.model.name, clock=clock, monotonic=clock.monotonic)
    yield opened
    opened.close()


@pytest.fixture
def nightly(settings: Settings) -> Settings:
    return settings.model_copy(update={"triggers": TriggerSettings(cron=NIGHTLY)})


@pytest.fixture
def scheduler(nightly: Settings, timed: Registry, clock: Clock) -> Iterator[MakeScheduler]:
    """Makes schedulers of the project, by the name of their holder; without a settings file a round's process ends at once."""
    made: list[TrainingScheduler] = []

    def make(holder: str) -> TrainingScheduler:
        executor = LocalExecutor(nightly, nightly.root / "ratchet.toml")
        one = TrainingScheduler(
            nightly, timed, lambda: FeatureStore(nightly), executor, clock, clock.monotonic, holder=holder
        )
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def write_feature_store(settings: Settings) -> None:
    config = default_feature_store_yaml(settings.model.name)
    (settings.root / "feature_store.yaml").write_text(config, encoding="utf-8")


def store_feedback(settings: Settings, number: int) -> None:
    features = FeatureStore(settings)
    append(features, "predictions", [prediction_row(number)])
    append(features, "feedback", [said(f"f{number}", number, "money", number, user=f"u{number}")])


def test_a_tick_that_fails_is_false_and_says_so_again_while_it_lasts(
    nightly: Settings, scheduler: MakeScheduler, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one = scheduler("here:1")

    def warnings() -> int:
        return sum("this tick failed, the next one tries again" in message for message in caplog.messages)

    assert [one.tick(), one.tick()] == [False, False], "feature_store.yaml is missing"
    assert warnings() == 1
    clock.advance(REPEAT_SECONDS - 1)
    assert not one.tick()
    assert warnings() == 1
    clock.advance(1)
    assert not one.tick()
    assert not one.tick()
    assert warnings() == 2
    write_feature_store(nightly)
    assert one.tick()
    assert warnings() == 2


def test_a_tick_without_the_lease_has_not_failed(nightly: Settings, scheduler: MakeScheduler) -> None:
    write_feature_store(nightly)
    assert scheduler("here:1").tick()
    assert scheduler("there:1").tick()


@pytest.mark.parametrize("by_hand", [False, True], ids=["another scheduler", "by hand"])
def test_a_time_that_somebody_else_used_does_not_start_a_second_round(
    by_hand: bool, nightly: Settings, timed: Registry, scheduler: MakeScheduler, clock: Clock
) -> None:
    write_feature_store(nightly)
    first, second = scheduler("here:1"), scheduler("there:1")
    assert [first.tick(), second.tick()] == [True, True]
    store_feedback(nightly, 0)
    clock.now = NIGHT + HOUR
    if by_hand:
        timed.claim_round(reason="now", cut={"F/0": 0}, token=None)
    else:
        first.tick()
    first.close()
    [record] = timed.rounds()
    assert (NIGHTLY in record.reason) != by_hand
    timed.finish_round(record.round_id, RoundState.SKIPPED, detail="test")
    store_feedback(nightly, 1)
    clock.advance(60)
    assert second.tick()
    assert timed.rounds() == [timed.round(record.round_id)], "the night's time is used up"
    clock.now += DAY
    assert second.tick()
    assert [NIGHTLY in one.reason for one in timed.rounds()] == [True, not by_hand]


def test_a_time_is_due_until_a_round_is_claimed_after_it() -> None:
    cron = Crontab(NIGHTLY, START)
    assert not cron.due(NIGHT - HOUR, None)
    assert cron.due(NIGHT + HOUR, None)
    assert cron.due(NIGHT + HOUR, NIGHT - HOUR), "a round before it uses up nothing"
    assert not cron.due(NIGHT + 2 * HOUR, NIGHT + HOUR)
    assert not cron.due(NIGHT + 2 * HOUR, None), "the round stays counted"
    assert cron.due(NIGHT + DAY, NIGHT + HOUR)
    assert not Crontab(None, START).due(NIGHT + DAY, None)


def test_a_clock_set_back_brings_the_times_again_but_not_those_of_some_seconds() -> None:
    cron = Crontab(NIGHTLY, START)
    ahead = NIGHT + 3650 * DAY + timedelta(seconds=5)
    assert not cron.due(ahead, ahead)
    assert not cron.due(ahead - SLACK / 2, ahead)
    assert not cron.due(NIGHT - HOUR, ahead)
    assert cron.due(NIGHT + HOUR, ahead), "a round that lies ahead of the clock uses up nothing"


def test_a_fill_of_the_queue_that_fails_is_a_warning_that_names_its_log(
    settings: Settings, registry: Registry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    add_versions(registry, "v1")
    registry.promote("v1", expected=None, token=None, actor="test")
    filler = QueueFiller(settings, settings.root / "nowhere.toml", registry, clock.monotonic)

    def warned() -> bool:
        filler.tick()
        return bool(caplog.messages)

    wait_until(warned)
    [line] = caplog.messages
    assert line.startswith("the labelling queue was not filled (exit ")
    assert line.endswith(f"{LOG} says why")
    assert "nowhere.toml does not exist" in settings.path(LOG).read_text(encoding="utf-8")
    filler.tick()
    assert len(caplog.messages) == 1
    filler.close()
