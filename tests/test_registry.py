"""The champion's pointer: invariants 3, 4, 6 and 9, on SQLite and, marked, on Postgres."""

import pytest
import sqlalchemy as sa

from schemas.records import Champion, RoundState
from serving.registry.registry import (
    ChampionMoved,
    NotServable,
    Registry,
    RoundOver,
    StaleLease,
    UnknownRound,
    UnknownVersion,
)
from tests.support import registries
from tests.support.manifests import manifest
from tests.support.registries import START, Clock, add_versions, begin, statement

url, clock, registry = registries.url, registries.clock, registries.registry


def test_promotion_moves_pointer_round_and_audit_log_together(registry: Registry, clock: Clock) -> None:
    assert registry.champion() is None
    add_versions(registry, "v1")
    record = begin(registry)
    clock.advance(5)

    champion = registry.promote("v1", expected=None, token=None, actor="gates", round_id=record.round_id)

    assert (
        champion
        == registry.champion()
        == Champion(
            model_version="v1",
            digest="digest of v1",
            generation=1,
            promoted_at=clock.now,
            round_id=record.round_id,
            actor="gates",
        )
    )
    ended = registry.round(record.round_id)
    assert (ended.state, ended.candidate_version, ended.finished_at) == (RoundState.PROMOTED, "v1", clock.now)
    assert registry.unfinished_round() is None
    (row,) = registry.audit_rows()
    assert row.detail == {"from": None, "to": "v1", "generation": 1, "round": record.round_id}


def test_a_refused_promotion_changes_nothing(registry: Registry) -> None:
    add_versions(registry, "v1", "v2")
    registry.register_version(manifest("unproven"), "d", servable=False)
    registry.promote("v1", expected=None, token=None, actor="me")
    token = registry.acquire_lease("scheduler", "a", 10)
    assert token is not None
    record = begin(registry)
    before = (registry.promotions(), registry.rounds(), registry.audit_rows())

    def refused(error: type[Exception], version: str, expected: str | None, token: int | None, round_id: str) -> None:
        with pytest.raises(error):
            registry.promote(version, expected=expected, token=token, actor="gates", round_id=round_id)

    refused(ChampionMoved, "v2", None, token, record.round_id)
    refused(ChampionMoved, "v2", "v9", token, record.round_id)
    refused(StaleLease, "v2", "v1", token - 1, record.round_id)
    refused(StaleLease, "v2", "v1", token + 1, record.round_id)
    refused(NotServable, "unproven", "v1", token, record.round_id)
    refused(UnknownVersion, "v9", "v1", token, record.round_id)
    refused(UnknownRound, "v2", "v1", token, "no such round")
    assert (registry.promotions(), registry.rounds(), registry.audit_rows()) == before

    assert registry.promote("v2", expected="v1", token=token, actor="gates", round_id=record.round_id).generation == 2


def test_a_named_person_may_approve_what_the_gates_did_not(registry: Registry) -> None:
    registry.register_version(manifest("v1"), "d", servable=False)
    registry.mark_servable("v1", approved_by="ada")
    assert registry.promote("v1", expected=None, token=None, actor="ada").actor == "ada"


def test_a_token_is_stale_once_another_holder_took_over(registry: Registry, clock: Clock) -> None:
    add_versions(registry, "v1")
    token = registry.acquire_lease("scheduler", "a", 10)
    clock.advance(11)
    newer = registry.acquire_lease("scheduler", "b", 10)

    with pytest.raises(StaleLease):
        registry.promote("v1", expected=None, token=token, actor="a")
    with pytest.raises(StaleLease):
        registry.claim_round(reason="late", cut={}, token=token)
    assert registry.promote("v1", expected=None, token=newer, actor="b").generation == 1


def test_a_round_promotes_once_even_after_a_rollback(registry: Registry) -> None:
    add_versions(registry, "v1", "v2", "v3")
    registry.promote("v1", expected=None, token=None, actor="me")
    record = begin(registry)

    first = registry.promote("v2", expected="v1", token=None, actor="gates", round_id=record.round_id)
    assert registry.promote("v2", expected="v1", token=None, actor="gates", round_id=record.round_id) == first
    back = registry.promote("v1", expected="v2", token=None, actor="ada")
    assert registry.promote("v2", expected="v1", token=None, actor="gates", round_id=record.round_id) == first
    with pytest.raises(RoundOver, match="has promoted v2"):
        registry.promote("v3", expected="v1", token=None, actor="gates", round_id=record.round_id)

    assert registry.champion() == back
    assert [(c.generation, c.model_version) for c in registry.promotions()] == [(3, "v1"), (2, "v2"), (1, "v1")]


def test_a_round_promotes_its_own_candidate_against_the_champion_it_was_gated_against(registry: Registry) -> None:
    add_versions(registry, "v1", "v2", "v3")
    registry.promote("v1", expected=None, token=None, actor="me")
    record = begin(registry)
    assert record.champion_version == "v1"
    registry.update_round(record.round_id, candidate_version="v2")
    with pytest.raises(ValueError, match="made v2, not v3"):
        registry.promote("v3", expected="v1", token=None, actor="gates", round_id=record.round_id)

    registry.promote("v3", expected="v1", token=None, actor="ada")
    with pytest.raises(ChampionMoved):
        registry.promote("v2", expected="v1", token=None, actor="gates", round_id=record.round_id)
    with pytest.raises(ChampionMoved, match="was gated against v1, not v3"):
        registry.promote("v2", expected="v3", token=None, actor="gates", round_id=record.round_id)
    assert registry.start_round(record.round_id).champion_version == "v3"


@pytest.mark.parametrize("state", [RoundState.FAILED, RoundState.SKIPPED])
def test_a_round_that_was_given_up_cannot_promote(registry: Registry, state: RoundState) -> None:
    add_versions(registry, "v1")
    record = begin(registry)
    registry.finish_round(record.round_id, state, detail="its process died")
    registry.mark_servable("v1", approved_by="ada")

    with pytest.raises(RoundOver, match=state.value):
        registry.promote("v1", expected=None, token=None, actor="zombie", round_id=record.round_id)
    assert registry.champion() is None


@pytest.mark.parametrize("state", [RoundState.REJECTED, RoundState.INSUFFICIENT])
def test_a_rejected_round_is_overruled_by_a_person_alone(registry: Registry, state: RoundState) -> None:
    add_versions(registry, "v1")
    record = begin(registry)
    registry.finish_round(record.round_id, state, detail="worse")
    with pytest.raises(RoundOver, match=state.value):
        registry.promote("v1", expected=None, token=None, actor="gates", round_id=record.round_id)

    registry.mark_servable("v1", approved_by="ada")
    registry.promote("v1", expected=None, token=None, actor="ada", round_id=record.round_id)
    assert registry.round(record.round_id).state is RoundState.PROMOTED


def test_a_round_that_has_not_started_cannot_promote_and_one_that_waits_can(registry: Registry) -> None:
    add_versions(registry, "v1")
    record = registry.claim_round(reason="test", cut={}, token=None)
    assert record is not None
    with pytest.raises(RoundOver, match="claimed"):
        registry.promote("v1", expected=None, token=None, actor="gates", round_id=record.round_id)

    registry.start_round(record.round_id)
    registry.finish_round(record.round_id, RoundState.AWAITING_APPROVAL, detail="passed")
    assert registry.round(record.round_id).finished_at is None
    registry.promote("v1", expected=None, token=None, actor="ada", round_id=record.round_id)
    assert registry.round(record.round_id).finished_at == START


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO promotions SELECT model_name, generation, 'v1', 'd', promoted_at, NULL, 'x' FROM promotions",
        "INSERT INTO promotions SELECT model_name, generation + 1, 'v1', 'd', promoted_at, round_id, 'x' FROM promotions",
        "INSERT INTO rounds SELECT round_id || 'x', model_name, sequence + 1, 'running', record FROM rounds"
        " WHERE state = 'claimed'",
    ],
)
def test_constraints_hold_whatever_the_code_does(registry: Registry, url: str, text: str) -> None:
    add_versions(registry, "v1")
    registry.promote("v1", expected=None, token=None, actor="me", round_id=begin(registry).round_id)
    registry.claim_round(reason="test", cut={}, token=None)
    with pytest.raises(sa.exc.IntegrityError):
        statement(url, text)
