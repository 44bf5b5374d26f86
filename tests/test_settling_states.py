"""The states of a settling round: labels promote, reject or leave it open; no model runs here, the registry is real."""

from pathlib import Path

import pytest

from pipelines.dataset.sources.queue_labels import queue_rows
from schemas.records import RoundRecord, RoundState
from schemas.setting_groups import DatasetSettings, GateSettings, ModelSettings
from schemas.settings import Settings
from services.rounds.settling import Settler, advance
from serving.registry.registry import Registry
from tests.support import registries
from tests.support.registries import Clock, add_versions, begin
from tests.support.settling_rounds import CANDIDATE, CHAMPION, TEXTS, candidate, settle

url, clock, registry = registries.url, registries.clock, registries.registry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=tmp_path, model=ModelSettings(name="m"))


def announced(_champion: object) -> None:
    """Announce nothing."""


def label(registry: Registry, record: RoundRecord, settings: Settings, answers: list[str]) -> RoundRecord:
    """Label items one after the other until the round has its verdict."""
    done = registry.round(record.round_id)
    items = registry.queue.items(round_id=record.round_id)
    for item, answer in zip(items, answers, strict=False):
        assert queue_rows(registry, settings).trains == [], "labels train before the verdict"
        registry.queue.label(item.item_id, answer, reviewer="ada")
        after = advance(settings, registry, token=None, announce=announced)
        assert after is not None
        done = after
        if done.state is not RoundState.SETTLING:
            break
    return done


def test_labels_for_the_candidate_promote_it(registry: Registry, clock: Clock, settings: Settings) -> None:
    candidate(registry, "v2")
    record = settle(registry)

    first = label(registry, record, settings, [CANDIDATE, "rate", CHAMPION])
    assert first.state is RoundState.SETTLING
    assert first.settling is not None
    assert (first.settling.labels, first.settling.wins) == (3, None)  # nobody sees wins before the verdict
    assert registry.queue.progress(record.round_id).wins is None
    assert registry.queue.progress(record.round_id).line.startswith("3 of about ")

    done = label(registry, record, settings, [CANDIDATE] * TEXTS)
    assert done.state is RoundState.PROMOTED, done.detail
    champion = registry.champion()
    assert champion is not None
    assert (champion.model_version, champion.generation, champion.round_id) == ("v2", 2, record.round_id)
    progress = registry.queue.progress(record.round_id)
    assert progress.wins == progress.labels
    assert progress.labels < 15
    assert advance(settings, registry, token=None, announce=announced) is None
    assert len(queue_rows(registry, settings).trains) == progress.labels
    judged = settings.model_copy(update={"dataset": DatasetSettings(settled_evidence=1.0)})
    assert len(queue_rows(registry, judged).judges) == progress.labels


def test_labels_for_the_champion_reject_the_candidate(registry: Registry, clock: Clock, settings: Settings) -> None:
    candidate(registry, "v2")
    done = label(registry, settle(registry), settings, [CHAMPION] * TEXTS)

    assert done.state is RoundState.REJECTED
    assert "worse than the champion: 0 wins" in str(done.detail)
    assert not registry.version("v2").servable


def test_even_labels_end_as_insufficient_before_people_have_labelled_all(
    registry: Registry, clock: Clock, settings: Settings
) -> None:
    candidate(registry, "v2")
    done = label(registry, settle(registry), settings, [CHAMPION, CHAMPION, CANDIDATE, CHAMPION] * TEXTS)

    assert done.state in (RoundState.INSUFFICIENT, RoundState.REJECTED)
    assert done.settling is not None
    assert done.settling.labels < TEXTS


def test_a_label_in_conflict_does_not_count(registry: Registry, clock: Clock, settings: Settings) -> None:
    candidate(registry, "v2")
    record = settle(registry)
    label(registry, record, settings, [CANDIDATE] * 3)
    [item, *_] = [item for item in registry.queue.items(round_id=record.round_id) if item.label]
    registry.queue.label(item.item_id, CHAMPION, reviewer="ben")

    after = advance(settings, registry, token=None, announce=announced)

    assert after is not None
    assert after.settling is not None
    assert after.settling.labels == 2


def test_a_renamed_label_changes_no_outcome(registry: Registry, clock: Clock, settings: Settings) -> None:
    candidate(registry, "v2")
    record = settle(registry)
    label(registry, record, settings, [CANDIDATE] * 3)
    registry.rename_label(CANDIDATE, "credit", actor="ada")
    done = label(registry, record, settings, ["credit"] * TEXTS)
    assert done.state is RoundState.PROMOTED, done.detail


def test_time_and_a_champion_that_moved_end_it(registry: Registry, clock: Clock, settings: Settings) -> None:
    candidate(registry, "v2")
    record = settle(registry)
    label(registry, record, settings, [CANDIDATE])
    clock.advance(15 * 86400)
    late = advance(settings, registry, token=None, announce=announced)
    assert late is not None
    assert late.state is RoundState.INSUFFICIENT
    assert "the time for labels ended" in str(late.detail)

    again = settle(registry)
    add_versions(registry, "v3")
    registry.promote("v3", expected="v1", token=None, actor="ada")
    moved = advance(settings, registry, token=None, announce=announced)
    assert moved is not None
    assert (moved.round_id, moved.state) == (again.round_id, RoundState.SUPERSEDED)
    assert "the champion is v3 now" in str(moved.detail)


def test_of_two_rounds_the_newer_settles(registry: Registry, clock: Clock, settings: Settings) -> None:
    candidate(registry, "v2")
    candidate(registry, "v3")
    older, newer = settle(registry, "v2"), settle(registry, "v3")
    done = label(registry, newer, settings, [CANDIDATE] * TEXTS)
    assert [registry.round(one.round_id).state for one in (older, newer)] == [
        RoundState.SUPERSEDED,
        RoundState.PROMOTED,
    ]
    assert done.candidate_version == "v3"


def test_with_manual_approval_it_waits_for_a_person_and_for_the_running_round(
    registry: Registry, clock: Clock, settings: Settings
) -> None:
    candidate(registry, "v2")
    record = settle(registry)
    running = begin(registry)
    manual = settings.model_copy(update={"gates": GateSettings(approval="manual")})
    assert label(registry, record, manual, [CANDIDATE] * 20).state is RoundState.SETTLING

    registry.finish_round(running.round_id, RoundState.SKIPPED, detail="nothing to do")
    done = advance(manual, registry, token=None, announce=announced)

    assert done is not None
    assert done.state is RoundState.AWAITING_APPROVAL
    assert "round approve" in str(done.detail)


def test_killed_between_two_steps_the_next_tick_goes_on(registry: Registry, clock: Clock, settings: Settings) -> None:
    """What a process leaves that was killed after it marked the version, before it promoted it."""
    candidate(registry, "v2")
    record = settle(registry)
    for item in registry.queue.items(round_id=record.round_id)[:12]:
        registry.queue.label(item.item_id, CANDIDATE, reviewer="ada")
    registry.mark_servable("v2")
    filled: list[None] = []

    settler = Settler(settings, registry, lambda: filled.append(None))
    token = registry.acquire_lease("scheduler", "me", 15)
    assert token is not None
    settler.tick(token)
    settler.tick(token)

    assert registry.round(record.round_id).state is RoundState.PROMOTED
    assert [champion.generation for champion in registry.promotions()] == [2, 1]
    assert len(filled) == 2


def test_a_person_may_reject_a_settling_round(registry: Registry, clock: Clock, settings: Settings) -> None:
    candidate(registry, "v2")
    record = settle(registry)
    registry.finish_round(record.round_id, RoundState.REJECTED, detail="rejected by ada: no longer wanted")
    assert advance(settings, registry, token=None, announce=announced) is None
    assert registry.queue.next("ben") is None
