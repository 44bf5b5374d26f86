"""The scheduler's tick on a real registry, a real feature store and real processes that end at once or hold a lock."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest

from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.records import RoundRecord, RoundState
from schemas.setting_groups import TriggerSettings
from schemas.settings import Settings, render_settings
from services.rounds.executor import LocalExecutor, round_mark
from services.rounds.process import lock_file, locked
from services.supervisor.children import sweep
from services.training_scheduler import TrainingScheduler
from serving.registry.registry import Registry
from tests.support.fakes import REPOSITORY, wait_until
from tests.support.registries import Clock
from tests.support.stored_rows import append, prediction_row, said


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(settings: Settings, registry: Registry, clock: Clock) -> Registry:
    """The project's registry on the test's clock."""
    return Registry(settings.registry_url, settings.model.name, clock=clock, monotonic=clock.monotonic)


@pytest.fixture
def executor(settings: Settings) -> LocalExecutor:
    """Starts real processes; without a settings file each ends at once, before it begins its round."""
    return LocalExecutor(settings, settings.root / "ratchet.toml")


@pytest.fixture
def scheduler(
    settings: Settings,
    timed: Registry,
    executor: LocalExecutor,
    clock: Clock,
) -> TrainingScheduler:
    (settings.root / "feature_store.yaml").write_text(default_feature_store_yaml(settings.model.name), encoding="utf-8")
    few = settings.model_copy(update={"triggers": TriggerSettings(min_feedback=3)})
    return TrainingScheduler(few, timed, lambda: FeatureStore(few), executor, clock, clock.monotonic, resume_s=0.0)


def claim(registry: Registry) -> str:
    record = registry.claim_round(reason="test", cut={}, token=None)
    assert record is not None
    return record.round_id


def ended(executor: LocalExecutor, round_id: str) -> None:
    """Wait until the process that the executor started for a round is gone."""
    wait_until(lambda: executor.exit_code(round_id) is not None, timeout_s=120)
    assert executor.starts(round_id)


def wait_for_line(lines: Iterable[str], wanted: str) -> None:
    """Read log lines up to the wanted one."""
    assert any(line == wanted for line in lines)


def store_feedback(settings: Settings, numbers: range) -> None:
    features = FeatureStore(settings)
    append(features, "predictions", [prediction_row(n) for n in numbers])
    append(features, "feedback", [said(f"f{n}", n, "money", n, user=f"u{n}") for n in numbers])


def test_enough_feedback_is_claimed_once_with_its_cut(
    settings: Settings, timed: Registry, scheduler: TrainingScheduler, executor: LocalExecutor
) -> None:
    store_feedback(settings, range(2))
    scheduler.tick()
    assert timed.unfinished_round() is None
    store_feedback(settings, range(2, 4))
    scheduler.tick()
    record = timed.unfinished_round()
    assert record is not None
    assert record.cut == {"F/0": 3}
    assert "4 of 3" in record.reason
    assert executor.starts(record.round_id) == 1
    scheduler.tick()
    assert len(timed.rounds()) == 1
    scheduler.close()

    # what that round used up is not counted again
    timed.finish_round(record.round_id, RoundState.INSUFFICIENT, detail="test")
    scheduler.tick()
    assert len(timed.rounds()) == 1


def test_a_failed_round_is_not_repeated_at_once(
    settings: Settings, timed: Registry, scheduler: TrainingScheduler, clock: Clock
) -> None:
    store_feedback(settings, range(4))
    timed.finish_round(claim(timed), RoundState.FAILED, detail="test")
    clock.advance(59)
    scheduler.tick()
    assert timed.unfinished_round() is None
    clock.advance(2)
    scheduler.tick()
    assert timed.unfinished_round() is not None
    scheduler.close()


def test_a_round_that_cannot_begin_is_marked_failed(
    timed: Registry, scheduler: TrainingScheduler, executor: LocalExecutor, clock: Clock
) -> None:
    round_id = claim(timed)
    scheduler.tick()
    assert executor.starts(round_id) == 0, "who claimed it by hand is given time to lock it"
    clock.advance(11)
    for _ in range(3):
        scheduler.tick()
        ended(executor, round_id)
    scheduler.tick()
    record = timed.round(round_id)
    assert record.state is RoundState.FAILED
    assert "ended 3 times" in (record.detail or "")
    assert "does not exist" in executor.log(round_id).read_text(encoding="utf-8")


def test_a_round_that_was_killed_says_so_and_that_memory_is_the_likely_cause(
    settings: Settings, timed: Registry, scheduler: TrainingScheduler, executor: LocalExecutor, clock: Clock
) -> None:
    round_id = claim(timed)
    scheduler.tick()
    clock.advance(11)
    for _ in range(3):
        scheduler.tick()
        assert sweep(round_mark(settings)) == 1
        ended(executor, round_id)
    scheduler.tick()
    record = timed.round(round_id)
    assert record.state is RoundState.FAILED
    assert "attempt killed, most likely out of memory: give this machine more" in (record.detail or "")


def test_a_round_whose_process_lives_here_is_left_alone(
    settings: Settings, timed: Registry, scheduler: TrainingScheduler, executor: LocalExecutor, clock: Clock
) -> None:
    round_id = claim(timed)
    timed.start_round(round_id)
    clock.now += timedelta(days=1)
    with locked(lock_file(settings, round_id)):
        scheduler.tick()
        assert executor.starts(round_id) == 0
    # its lock is free now, and was held on this machine: it is known to be dead, whatever its heartbeat says
    timed.update_round(round_id)
    scheduler.tick()
    assert executor.starts(round_id) == 1
    scheduler.close()


def test_a_round_of_another_machine_is_resumed_only_when_its_heart_is_silent(
    settings: Settings, timed: Registry, scheduler: TrainingScheduler, executor: LocalExecutor, clock: Clock
) -> None:
    round_id = claim(timed)
    timed.start_round(round_id)
    path = lock_file(settings, round_id)
    path.parent.mkdir(parents=True)
    path.write_text("elsewhere 4711", encoding="utf-8")
    scheduler.tick()
    clock.advance(settings.triggers.stale_after_s - 1)
    scheduler.tick()
    assert executor.starts(round_id) == 0
    clock.advance(2)
    scheduler.tick()
    assert executor.starts(round_id) == 1
    scheduler.close()


def test_a_round_that_died_too_often_is_marked_failed(
    settings: Settings, timed: Registry, scheduler: TrainingScheduler
) -> None:
    round_id = claim(timed)
    for _ in range(settings.triggers.max_attempts):
        timed.start_round(round_id)
    timed.update_round(round_id, step="training", detail="out of memory")
    path = lock_file(settings, round_id)
    path.parent.mkdir(parents=True)
    path.write_text(f"{socket.gethostname()} 4711", encoding="utf-8")
    scheduler.tick()
    record = timed.round(round_id)
    assert record.state is RoundState.FAILED
    assert "3 times" in (record.detail or "")
    assert "training; out of memory" in (record.detail or "")


def test_a_round_that_awaits_approval_waits(
    timed: Registry, scheduler: TrainingScheduler, executor: LocalExecutor, clock: Clock
) -> None:
    round_id = claim(timed)
    timed.start_round(round_id)
    timed.finish_round(round_id, RoundState.AWAITING_APPROVAL, detail="test")
    clock.advance(30 * 86400)
    scheduler.tick()
    assert timed.round(round_id).state is RoundState.AWAITING_APPROVAL
    assert executor.starts(round_id) == 0


def test_round_json_follows_the_registry_whoever_ended_the_round(
    settings: Settings, timed: Registry, scheduler: TrainingScheduler
) -> None:
    folders = settings.path("state/rounds")

    def file(round_id: str) -> Path:
        folder = folders / round_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "round.json"

    killed = claim(timed)
    file(killed)
    timed.finish_round(killed, RoundState.REJECTED, detail="killed before the file was written")
    elsewhere = claim(timed)
    timed.finish_round(elsewhere, RoundState.SKIPPED, detail="its folder is on another machine")
    waiting = claim(timed)
    timed.start_round(waiting)
    timed.finish_round(waiting, RoundState.AWAITING_APPROVAL, detail="every gate passed")
    scheduler.tick()
    assert not (folders / elsewhere).exists()
    assert RoundRecord.model_validate_json(file(killed).read_bytes()) == timed.round(killed)
    file(waiting).write_text(timed.round(waiting).model_dump_json(), encoding="utf-8")
    timed.finish_round(waiting, RoundState.REJECTED, detail="a person said no")
    scheduler.tick()
    assert RoundRecord.model_validate_json(file(waiting).read_bytes()).state is RoundState.REJECTED


def test_without_the_lease_it_does_nothing(
    settings: Settings, timed: Registry, scheduler: TrainingScheduler, clock: Clock
) -> None:
    store_feedback(settings, range(4))
    assert timed.acquire_lease("scheduler", "elsewhere:1", 15) is not None
    scheduler.tick()
    assert timed.rounds() == []
    clock.advance(16)
    scheduler.tick()
    assert len(timed.rounds()) == 1
    scheduler.close()


def test_cron_claims_once_per_time(settings: Settings, timed: Registry, executor: LocalExecutor, clock: Clock) -> None:
    (settings.root / "feature_store.yaml").write_text(default_feature_store_yaml(settings.model.name), encoding="utf-8")
    nightly = settings.model_copy(update={"triggers": TriggerSettings(cron="0 3 * * *")})
    scheduler = TrainingScheduler(nightly, timed, lambda: FeatureStore(nightly), executor, clock, clock.monotonic)
    scheduler.tick()
    assert timed.rounds() == []
    clock.advance(16 * 3600)
    scheduler.tick()
    assert timed.rounds() == [], "no feedback, nothing to learn"
    store_feedback(settings, range(1))
    clock.advance(24 * 3600)
    scheduler.tick()
    [record] = timed.rounds()
    assert "0 3 * * *" in record.reason
    scheduler.close()
    timed.finish_round(record.round_id, RoundState.SKIPPED, detail="test")
    scheduler.tick()
    assert len(timed.rounds()) == 1


def test_a_tick_outlives_a_registry_and_a_store_that_are_away(
    tmp_path: Path, settings: Settings, executor: LocalExecutor
) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/late.db", settings.model.name)
    few = settings.model_copy(update={"triggers": TriggerSettings(min_feedback=3)})
    scheduler = TrainingScheduler(few, registry, lambda: FeatureStore(few), executor)
    scheduler.tick()
    registry.migrate()
    scheduler.tick()  # feature_store.yaml is still missing
    assert registry.rounds() == []
    (settings.root / "feature_store.yaml").write_text(default_feature_store_yaml(settings.model.name), encoding="utf-8")
    store_feedback(settings, range(4))
    scheduler.tick()
    assert len(registry.rounds()) == 1
    scheduler.close()
    registry.close()


def start_main(config: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "services.training_scheduler", "-c", str(config)]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        encoding="utf-8",
    )


def test_the_process_says_ready_and_gives_its_lease_back(settings: Settings, registry: Registry) -> None:
    values = settings.model_dump(mode="json", exclude_none=True)
    config = settings.root / "ratchet.toml"
    config.write_text(render_settings({"model": values["model"], "dataset": values["dataset"]}), encoding="utf-8")
    (settings.root / "feature_store.yaml").write_text(default_feature_store_yaml(settings.model.name), encoding="utf-8")
    process = start_main(config)
    assert process.stdout is not None
    wait_for_line(process.stdout, "ready\n")
    wait_until(lambda: registry.acquire_lease("scheduler", "elsewhere:1", 0.001) is None)
    process.terminate()
    out, _ = process.communicate(timeout=180)  # a tick that loads the feature store is not interrupted
    assert process.returncode == 0, out
    assert registry.acquire_lease("scheduler", "elsewhere:1", 1) is not None


def test_drift_is_refused_in_one_line(settings: Settings) -> None:
    config = settings.root / "ratchet.toml"
    config.write_text("[triggers]\ndrift = 0.2\n", encoding="utf-8")
    process = start_main(config)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "triggers.drift = 0.2" in err
    assert "Traceback" not in err


def test_a_round_process_carries_a_mark_of_its_own(settings: Settings) -> None:
    assert round_mark(settings) == f"{settings.root}:round"
