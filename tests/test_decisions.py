"""Decisions hold: one state a version, rollbacks to what has served, approvals with reasons and by enough people."""

import pytest

from schemas.records import RoundState, VersionState
from serving.registry.registry import (
    ChampionMoved,
    DecidedAlready,
    NeedsOverrule,
    NeverServed,
    NoReason,
    NotServable,
    Registry,
    RoundOver,
    UnknownVersion,
)
from tests.support import registries
from tests.support.manifests import manifest
from tests.support.registries import add_versions, begin

url, clock, registry = registries.url, registries.clock, registries.registry


def states(registry: Registry) -> dict[str, str]:
    return {version.model_version: version.state.value for version in registry.versions()}


def judged(registry: Registry, version: str, state: RoundState, *, people: int = 1) -> str:
    """Return the id of a round that made a candidate and ended in a state."""
    registry.register_version(manifest(version), f"digest of {version}", servable=state is RoundState.AWAITING_APPROVAL)
    record = begin(registry)
    registry.update_round(record.round_id, candidate_version=version, approvals_needed=people)
    registry.finish_round(record.round_id, state, detail="its gates said so")
    return record.round_id


@pytest.fixture
def served(registry: Registry) -> Registry:
    """A registry whose champions were v1, v2 and v3."""
    add_versions(registry, "v1", "v2", "v3")
    for expected, version in [(None, "v1"), ("v1", "v2"), ("v2", "v3")]:
        registry.promote(version, expected=expected, token=None, actor="gates")
    return registry


def test_a_version_has_one_state_from_candidate_to_rolled_back(served: Registry) -> None:
    assert states(served) == {"v3": "champion", "v2": "retired", "v1": "retired"}
    waits = judged(served, "v4", RoundState.AWAITING_APPROVAL)
    assert served.version("v4").state is VersionState.AWAITING_APPROVAL
    served.approve(waits, actor="ann", reason="read the report")
    assert states(served) == {"v4": "champion", "v3": "retired", "v2": "retired", "v1": "retired"}
    served.roll_back(to=None, expected="v4", actor="ann", reason="complaints")
    judged(served, "v5", RoundState.REJECTED)
    judged(served, "v6", RoundState.INSUFFICIENT)
    assert states(served) == {
        "v6": "candidate",
        "v5": "rejected",
        "v4": "rolled back",
        "v3": "champion",
        "v2": "retired",
        "v1": "retired",
    }
    assert served.verify_audit() == []


def test_a_second_rollback_goes_further_back_and_never_forth(served: Registry) -> None:
    assert served.roll_back(to=None, expected="v3", actor="ann", reason="").model_version == "v2"
    assert served.roll_back(to=None, expected="v2", actor="ann", reason="").model_version == "v1"
    with pytest.raises(NeverServed, match="no champion before v1"):
        served.roll_back(to=None, expected="v1", actor="ann", reason="")
    with pytest.raises(NoReason, match="a return to v3, which was rolled back, needs a reason"):
        served.roll_back(to="v3", expected="v1", actor="ann", reason=" ")
    back = served.roll_back(to="v3", expected="v1", actor="ann", reason="it was the data")
    assert (back.model_version, back.generation) == ("v3", 6)
    assert states(served) == {"v3": "champion", "v2": "rolled back", "v1": "rolled back"}


@pytest.mark.parametrize("state", [RoundState.REJECTED, RoundState.INSUFFICIENT, RoundState.AWAITING_APPROVAL])
def test_a_version_that_never_served_is_no_target_of_a_rollback(served: Registry, state: RoundState) -> None:
    judged(served, "v4", state)
    with pytest.raises(NeverServed, match="has never served"):
        served.roll_back(to="v4", expected="v3", actor="ann", reason="I like it")
    with pytest.raises(UnknownVersion):
        served.roll_back(to="v9", expected="v3", actor="ann", reason="")
    with pytest.raises(ValueError, match="is the champion already"):
        served.roll_back(to="v3", expected="v3", actor="ann", reason="")
    with pytest.raises(ChampionMoved):
        served.roll_back(to="v1", expected="v2", actor="ann", reason="")
    assert served.champion() == served.promotions()[0]


@pytest.mark.parametrize("state", [RoundState.REJECTED, RoundState.INSUFFICIENT])
def test_a_verdict_is_overruled_only_by_word_and_with_a_reason(registry: Registry, state: RoundState) -> None:
    round_id = judged(registry, "v1", state)
    with pytest.raises(NeedsOverrule, match="--overrule"):
        registry.approve(round_id, actor="ann", reason="I know better")
    with pytest.raises(NoReason):
        registry.approve(round_id, actor="ann", reason="", overrule=True)
    with pytest.raises(NotServable):
        registry.promote("v1", expected=None, token=None, actor="gates")
    approval = registry.approve(round_id, actor="ann", reason="checked by hand", overrule=True)
    assert approval.champion is not None
    assert registry.version("v1").approved_by == "ann"
    decision = next(row for row in registry.audit_rows() if row.action == "round approve")
    assert (decision.actor, decision.detail["overruled"], decision.detail["reason"]) == (
        "ann",
        state.value,
        "checked by hand",
    )
    with pytest.raises(RoundOver):
        registry.approve(round_id, actor="bob", reason="me too", overrule=True)


def test_two_people_have_to_approve_where_the_policy_says_so(registry: Registry) -> None:
    round_id = judged(registry, "v1", RoundState.AWAITING_APPROVAL, people=2)
    first = registry.approve(round_id, actor="ann", reason="fine")
    assert (first.given, first.needed, first.champion) == (1, 2, None)
    assert registry.champion() is None
    with pytest.raises(DecidedAlready, match="another reviewer is missing"):
        registry.approve(round_id, actor="ann", reason="still fine")
    second = registry.approve(round_id, actor="bob", reason="agreed")
    assert second.champion is not None
    assert registry.version("v1").approved_by == "ann, bob"
    assert registry.verify_audit() == []


def test_one_rejection_ends_a_round_that_one_of_two_has_approved(registry: Registry) -> None:
    round_id = judged(registry, "v1", RoundState.AWAITING_APPROVAL, people=2)
    registry.approve(round_id, actor="ann", reason="fine")
    with pytest.raises(NoReason):
        registry.reject(round_id, actor="bob", reason="")
    record = registry.reject(round_id, actor="bob", reason="typos")
    assert (record.state, record.detail) == (RoundState.REJECTED, "rejected by bob: typos")
    assert registry.version("v1").state is VersionState.REJECTED
    with pytest.raises(RoundOver):
        registry.reject(round_id, actor="bob", reason="typos")
    with pytest.raises(NotServable, match="was rejected"):
        registry.promote("v1", expected=None, token=None, actor="gates")
    first = registry.approve(round_id, actor="carl", reason="typos are fixed upstream", overrule=True)
    assert (first.given, first.champion) == (1, None), "what ann approved was before the objection"
    second = registry.approve(round_id, actor="ann", reason="so they are", overrule=True)
    assert second.champion is not None


def test_an_approval_counts_for_the_champion_that_was_judged_against(served: Registry) -> None:
    round_id = judged(served, "v4", RoundState.AWAITING_APPROVAL)
    served.roll_back(to=None, expected="v3", actor="ann", reason="")
    with pytest.raises(ChampionMoved, match="was judged against v3"):
        served.approve(round_id, actor="ann", reason="good")
    assert served.round(round_id).state is RoundState.AWAITING_APPROVAL
