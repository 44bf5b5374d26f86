"""The wall clock is set back or ahead, before, during and after a run, with and without SIGKILL: rounds go on."""

import contextlib
import json
import socket
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.event_rows import row_of
from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.records import RoundState
from schemas.setting_groups import ModelSettings, RegistrySettings, TriggerSettings
from schemas.settings import Settings
from services.ingestion.live_counts import LiveCounts
from services.rounds.executor import LocalExecutor
from services.training_scheduler import LEASE_SECONDS, LOCK, TrainingScheduler
from serving.registry.registry import Registry, RegistryUnavailable
from tests.support import registries
from tests.support.events import feedback, prediction
from tests.support.registries import START, Clock

url, clock, registry_of_leases = registries.url, registries.clock, registries.registry

MOVES = [timedelta(seconds=90), timedelta(days=3650)]  # within a round's patience, and far beyond everything
BOTH_WAYS = [sign * move for move in MOVES for sign in (1, -1)]


class Starts:
    """Instead of a round's process: what was started. The claim is what these tests are about."""

    def __init__(self, settings: Settings) -> None:
        real = LocalExecutor(settings, settings.root / "ratchet.toml")
        self.liveness, self.starts, self.log = real.liveness, real.starts, real.log
        self.seconds_since_start, self.exit_code = real.seconds_since_start, real.exit_code
        self.started: list[str] = []
        self.running: str | None = None

    def start(self, round_id: str, _: int) -> None:
        """Take note of it."""
        self.started.append(round_id)

    def stop(self) -> str | None:
        """Return what a test says is running."""
        return self.running


class Gathered:
    """How much labelled feedback there is, and up to where."""

    def __init__(self) -> None:
        self.stored = 0

    def count_labelled_since(self, cut: dict[str, int]) -> int:
        return self.stored - cut.get("F/0", -1) - 1

    def current_cut(self) -> dict[str, int]:
        return {"F/0": self.stored - 1}


class Site:
    """One project folder with a registry of its own in a shared database; schedulers come and go in it."""

    def __init__(self, root: Path, url: str, **triggers: Any) -> None:
        self.settings = Settings(
            root=root,
            model=ModelSettings(name=root.name),
            registry=RegistrySettings(url=url),
            triggers=TriggerSettings(min_feedback=3, **triggers),
        )
        self.clock = Clock()
        self.features, self.executor = Gathered(), Starts(self.settings)
        self.registry = self.open()
        self.registries: dict[TrainingScheduler, Registry] = {}

    def open(self) -> Registry:
        settings, clock = self.settings, self.clock
        return Registry(settings.registry_url, settings.model.name, clock=clock, monotonic=clock.monotonic)

    def scheduler(self, holder: str) -> TrainingScheduler:
        registry = self.open()
        made = TrainingScheduler(
            self.settings,
            registry,
            lambda: self.features,
            self.executor,  # type: ignore[arg-type]
            self.clock,
            self.clock.monotonic,
            holder=holder,
        )
        self.registries[made] = registry
        return made

    def ticks(self, scheduler: TrainingScheduler, most: int) -> int | None:
        """How many ticks it took until a round was claimed; None if it was not within `most`."""
        for n in range(1, most + 1):
            scheduler.tick()
            if self.registry.unfinished_round():
                return n
            self.clock.advance(2)
        return None

    def kill(self, scheduler: TrainingScheduler) -> None:
        """Leave what SIGKILL leaves: the lease as it is, the file lock gone. Without the registry no lease is released."""

        def unreachable(name: str, holder: str) -> None:
            raise RegistryUnavailable(f"{holder} cannot release {name}")

        self.registries[scheduler].release_lease = unreachable
        scheduler.close()

    def end_round(self, state: RoundState = RoundState.INSUFFICIENT) -> None:
        unfinished = self.registry.unfinished_round()
        assert unfinished is not None
        self.registry.finish_round(unfinished.round_id, state, detail="test")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = f"sqlite:///{tmp_path_factory.mktemp('clocks')}/registry.db"
    with contextlib.closing(Registry(found, "m")) as opened:
        opened.migrate()
    return found


@pytest.fixture
def new_site(tmp_path: Path, database: str) -> Callable[..., Site]:
    def made(**triggers: Any) -> Site:
        root = tmp_path / f"m-{uuid.uuid4().hex[:12]}"
        root.mkdir()
        return Site(root, database, **triggers)

    return made


@pytest.fixture
def site(new_site: Callable[..., Site]) -> Site:
    return new_site()


@pytest.mark.parametrize("kill", [False, True], ids=["lives", "SIGKILL"])
@pytest.mark.parametrize("move", BOTH_WAYS, ids=str)
def test_a_round_is_claimed_within_two_ticks_of_any_move(site: Site, move: timedelta, kill: bool) -> None:
    scheduler = site.scheduler("here:1")
    site.features.stored += 1
    assert site.ticks(scheduler, 1) is None
    for n, moved in enumerate((move, -move, move), start=1):  # moved, corrected, moved again, a round each time
        site.clock.set(moved)
        if kill:
            site.kill(scheduler)
            scheduler = site.scheduler(f"here:{n + 1}")
        site.features.stored += 4
        claimed = site.ticks(scheduler, 2)
        assert claimed is not None, f"move {n}: no round within two ticks"
        site.end_round()
        site.clock.advance(2)
    scheduler.close()


@pytest.mark.parametrize("move", BOTH_WAYS, ids=str)
def test_without_the_dead_ones_folder_a_lease_is_taken_after_its_length(site: Site, move: timedelta) -> None:
    dead = site.scheduler("there:1")
    dead.tick()
    site.clock.set(move)
    (site.settings.root / LOCK).unlink()
    other = site.scheduler("here:1")
    site.features.stored += 4
    taken = site.ticks(other, int(LEASE_SECONDS // 2) + 3)
    assert taken is not None
    assert (taken - 1) * 2 <= LEASE_SECONDS + 2
    other.close()
    site.kill(dead)


@pytest.mark.parametrize("ahead", MOVES, ids=str)
def test_machines_whose_clocks_differ_do_not_take_the_lease_from_each_other(site: Site, ahead: timedelta) -> None:
    theirs = Clock()
    theirs.set(ahead)
    other = Registry(site.settings.registry_url, site.settings.model.name, clock=theirs, monotonic=site.clock.monotonic)
    tokens = []
    for _ in range(30):
        ours = site.registry.acquire_lease("scheduler", "slow", LEASE_SECONDS)
        tokens.append((ours, other.acquire_lease("scheduler", "fast", LEASE_SECONDS)))
        site.clock.advance(2)
        theirs.advance(2)
    # The fast one may take it once, for to it the slow one's lease is over; then it keeps it.
    assert set(tokens[1:]) == {(None, 2)}
    other.close()


@pytest.mark.parametrize("move", BOTH_WAYS, ids=str)
def test_a_living_round_of_another_machine_stays_alone_and_a_dead_one_does_not(site: Site, move: timedelta) -> None:
    scheduler = site.scheduler("here:1")
    record = site.registry.claim_round(reason="elsewhere", cut={}, token=None)
    assert record is not None
    site.registry.start_round(record.round_id)
    scheduler.tick()
    site.clock.set(move)
    for _ in range(100):  # it beats, by whatever clock
        site.registry.update_round(record.round_id)
        site.clock.advance(2)
        scheduler.tick()
    assert site.executor.started == []
    for _ in range(int(site.settings.triggers.stale_after_s // 2) + 2):
        site.clock.advance(2)
        scheduler.tick()
    assert record.round_id in site.executor.started
    scheduler.close()


@pytest.mark.parametrize("move", BOTH_WAYS, ids=str)
def test_a_failed_round_is_tried_again_after_its_minute(site: Site, move: timedelta) -> None:
    scheduler = site.scheduler("here:1")
    site.features.stored += 4
    assert site.ticks(scheduler, 1) == 1
    site.end_round(RoundState.FAILED)
    site.clock.advance(2)
    scheduler.tick()
    site.clock.set(move)
    again = site.ticks(scheduler, 32)
    assert again is not None
    assert again == 1 or move < timedelta()  # a leap ahead may bring it forward, never a move back put it off
    scheduler.close()


@pytest.mark.parametrize("back", MOVES, ids=str)
def test_cron_goes_on_when_the_clock_was_set_back(new_site: Callable[..., Site], back: timedelta) -> None:
    site = new_site(cron="*/5 * * * *")
    site.clock.advance(1)
    scheduler = site.scheduler("here:1")
    site.clock.advance(300)
    site.features.stored = 4  # a crontab waits for feedback
    assert site.ticks(scheduler, 1) == 1
    site.end_round()
    site.features.stored += 1
    site.clock.set(-back)
    assert site.ticks(scheduler, 152) is not None  # within the crontab's five minutes
    site.end_round()
    site.features.stored += 1
    site.clock.set(timedelta(seconds=-5))
    assert site.ticks(scheduler, 3) is None  # a step of some seconds passes no time twice
    scheduler.close()


def test_cron_fires_once_for_all_the_times_of_a_leap(new_site: Callable[..., Site]) -> None:
    site = new_site(cron="0 3 * * *")
    scheduler = site.scheduler("here:1")
    site.clock.set(timedelta(days=3650))
    site.features.stored = 4
    assert site.ticks(scheduler, 1) == 1
    site.end_round()
    site.features.stored += 1
    assert site.ticks(scheduler, 10) is None
    scheduler.close()


@pytest.mark.parametrize("move", BOTH_WAYS, ids=str)
def test_max_age_is_not_put_off(new_site: Callable[..., Site], move: timedelta) -> None:
    site = new_site(max_age=0.1)
    scheduler = site.scheduler("here:1")
    site.features.stored = 4
    assert site.ticks(scheduler, 1) == 1
    site.end_round()
    site.features.stored += 1
    site.clock.advance(2)
    scheduler.tick()
    site.clock.set(move)
    assert site.ticks(scheduler, 181) is not None  # six minutes
    scheduler.close()


def test_live_counts_are_written_after_any_move(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text(default_feature_store_yaml("m"), encoding="utf-8")
    features, clock = FeatureStore(Settings(root=tmp_path)), Clock()
    features.write_online([prediction(n) for n in range(2 * len(BOTH_WAYS))])
    for n, move in enumerate(BOTH_WAYS):
        counts = LiveCounts(features, clock.monotonic)
        counts.start(["F/0"])
        for m, moved in enumerate((timedelta(), move)):
            clock.set(moved)
            clock.advance(1)
            counts.add([("F/0", feedback(2 * n + m))])
            counts.write(clock())
            assert json.loads(features.live(["F/0"])["F/0"]) == {"v1": {"disagreed": m + 1}}, move


def test_feedback_finds_a_prediction_that_was_made_before_the_clock_was_set_back(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text(default_feature_store_yaml("m"), encoding="utf-8")
    features, now = FeatureStore(Settings(root=tmp_path)), START
    for n, back in enumerate([*MOVES[:1], timedelta(hours=1), timedelta(days=30)]):
        made, said = prediction(n, time=now + back), feedback(n, time=now)
        for table, event, at in (("predictions", made, now + back), ("feedback", said, now)):
            row = row_of(event, at, "F", 0, n)
            features.log.append(table, pa.Table.from_pylist([row], schema=SCHEMAS[table]))
    assert [row.text for row in features.labelled_feedback()] == ["text 0", "text 1", "text 2"]


def test_workers_of_before_the_clock_was_set_back_are_not_alive(registry_of_leases: Registry, clock: Clock) -> None:
    beat = {"model_version": "v", "generation": 1, "error": None}
    registry_of_leases.heartbeat("dead", "h", **beat)  # type: ignore[arg-type]
    clock.set(timedelta(days=-30))
    registry_of_leases.heartbeat("1", "h", **beat)  # type: ignore[arg-type]
    assert [worker.worker for worker in registry_of_leases.workers()] == ["1"]
    clock.set(timedelta(days=30))
    registry_of_leases.heartbeat("1", "h", **beat)  # type: ignore[arg-type]
    assert [worker.worker for worker in registry_of_leases.workers()] == ["1"]


def test_the_registry_says_how_far_its_times_are_ahead(registry_of_leases: Registry, clock: Clock) -> None:
    assert registry_of_leases.seconds_ahead() == 0
    registry_of_leases.acquire_lease("scheduler", "a", 15)
    assert registry_of_leases.seconds_ahead() == 0
    registry_of_leases.audit("me", "test", {})
    clock.set(timedelta(hours=-3))
    assert registry_of_leases.seconds_ahead() == pytest.approx(3 * 3600, abs=20)


def test_a_stopped_round_spends_no_attempt(site: Site) -> None:
    record = site.registry.claim_round(reason="test", cut={}, token=None)
    assert record is not None
    for stops in range(1, 5):
        site.registry.start_round(record.round_id)
        scheduler = site.scheduler("here:1")
        site.executor.running = record.round_id
        scheduler.close()
        found = site.registry.round(record.round_id)
        assert (found.state, found.attempts, found.interruptions) == (RoundState.RUNNING, stops, stops)
    path = site.settings.path("state/rounds") / record.round_id / "lock"
    path.parent.mkdir(parents=True)
    path.write_text(f"{socket.gethostname()} 4711", encoding="utf-8")  # its process is gone
    site.executor.running = None
    last = site.scheduler("here:2")
    last.tick()
    assert site.registry.round(record.round_id).state is RoundState.RUNNING
    for _ in range(site.settings.triggers.max_attempts):
        site.registry.start_round(record.round_id)
    last.tick()
    assert "3 times" in (site.registry.round(record.round_id).detail or "")
    last.close()
