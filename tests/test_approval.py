"""The approval policy: which candidates wait for people, and why."""

import pytest

from pipelines.gates.approval import ApprovalPolicy, Condition, reasons
from pipelines.gates.policy import BadPolicy, default_policy, load_policy
from tests.support.manifests import manifest

CHAMPION = manifest("v1", labels=["a", "b"])


@pytest.mark.parametrize(
    ("condition", "candidate", "champion", "moved", "reason"),
    [
        ("first_champion", {}, None, None, "it is the first champion"),
        ("first_champion", {}, CHAMPION, 1.0, None),
        ("new_label", {"labels": ["b", "a", "c", "d"]}, CHAMPION, 0.0, "does not: c, d"),
        ("new_label", {"labels": ["b"]}, CHAMPION, 0.0, None),
        ("base_model_change", {"base_model_sha256": "f" * 64}, CHAMPION, 0.0, "another base model"),
        ("base_model_change", {}, CHAMPION, 0.0, None),
        ("moved_answers", {}, CHAMPION, 0.31, "answers 31% of the reference rows otherwise than the champion; 30% may"),
        ("moved_answers", {}, CHAMPION, 0.3, None),
        ("moved_answers", {}, None, None, None),
    ],
)
def test_a_candidate_waits_only_where_a_condition_holds(
    condition: Condition, candidate: dict[str, object], champion: object, moved: float | None, reason: str | None
) -> None:
    policy = ApprovalPolicy(when=(condition,), moved_share=0.3)
    made = manifest("v2", **{"labels": ["a", "b"], **candidate})
    given = reasons(policy, made, CHAMPION if champion else None, moved)
    assert [reason in sentence for sentence in given if reason] == [True] * bool(reason)
    assert bool(given) == bool(reason)
    assert reasons(ApprovalPolicy(), made, CHAMPION if champion else None, moved) == []


def test_the_file_of_a_new_project_shows_the_section() -> None:
    assert load_policy(default_policy("classification")).approval == ApprovalPolicy()
    text = default_policy("regression").replace("when = []", 'when = ["new_label", "moved_answers"]')
    assert load_policy(text).approval.when == ("new_label", "moved_answers")


@pytest.mark.parametrize(("line", "said"), [('when = ["always"]', "approval.when"), ("people = 0", "approval.people")])
def test_a_bad_approval_policy_is_named(line: str, said: str) -> None:
    with pytest.raises(BadPolicy, match=said):
        load_policy(f"[approval]\n{line}\n")
