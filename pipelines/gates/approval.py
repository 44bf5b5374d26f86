"""When people have to approve a candidate that passed every gate, and how many.

Turns two manifests and the share of changed answers into the reasons why a candidate waits for people. training_round.py calls
it. The people are checked elsewhere: the registry counts approvals, the command line and the console know who gives them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.manifests import ModelManifest
from schemas.reports import GateReport

TEMPLATE = """
[approval]
# How many people have to approve a candidate that waits for `ratchet round approve`, or is promoted against its verdict.
people = 1
# With gates.approval = "auto", a candidate that passed waits for people only if one of these conditions holds:
#   first_champion     there is no champion yet
#   new_label          it predicts a label that the champion does not
#   base_model_change  it starts from another pretrained model than the champion
#   moved_answers      it answers more than this share of the reference rows otherwise than the champion
when = []
moved_share = 0.2
"""

Condition = Literal["first_champion", "new_label", "base_model_change", "moved_answers"]


class ApprovalPolicy(BaseModel):
    """How many people have to approve, and under which conditions a candidate that passed waits for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    people: int = Field(1, ge=1, le=10)
    when: tuple[Condition, ...] = ()
    moved_share: float = Field(0.2, ge=0, le=1)


def of(report: GateReport) -> ApprovalPolicy:
    """Return the approval policy that a candidate was judged by: later edits of policy.toml do not change it."""
    return ApprovalPolicy.model_validate(report.policy.get("approval", {}))


def reasons(
    policy: ApprovalPolicy, candidate: ModelManifest, champion: ModelManifest | None, moved: float | None
) -> list[str]:
    """Return why a candidate waits for people, one sentence for each condition that holds; none: it may be promoted.

    Args:
        policy: the conditions.
        candidate: its manifest.
        champion: manifest of the champion; None if there is none.
        moved: share of the reference rows that the two answer differently; None without a champion.

    """
    return [
        sentence for condition in policy.when if (sentence := _reason(condition, policy, candidate, champion, moved))
    ]


def _reason(
    condition: Condition,
    policy: ApprovalPolicy,
    candidate: ModelManifest,
    champion: ModelManifest | None,
    moved: float | None,
) -> str | None:
    """Return the sentence of a condition; None if it does not hold."""
    if champion is None:
        return "it is the first champion" if condition == "first_champion" else None
    if condition == "new_label":
        new = [label for label in candidate.labels if label not in champion.labels]
        return f"it predicts labels that the champion does not: {', '.join(new)}" if new else None
    if condition == "base_model_change" and candidate.base_model_sha256 != champion.base_model_sha256:
        return "it starts from another base model than the champion"
    if condition == "moved_answers" and moved is not None and moved > policy.moved_share:
        return f"it answers {moved:.0%} of the reference rows otherwise than the champion; {policy.moved_share:.0%} may"
    return None
