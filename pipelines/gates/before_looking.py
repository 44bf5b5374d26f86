"""Before looking: may this candidate be compared with the champion on the reference set at all?

Turns facts about the data, and both models on validation rows, into the gate that keeps the candidate away, or None.
round_judgement.py calls `held_back`: what is held back spends no alpha. Validation rows come from feedback, so they are no fair
sample: the champion was wrong on most of them. They never show that a candidate is good. But one that is not even better there
is not worth a look.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.dataset.examples import UNCHALLENGED, Example
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.gates import absolute
from pipelines.gates.policy import Policy
from pipelines.gates.result import gate_result
from schemas.manifests import ModelManifest
from schemas.reports import GateResult, Verdict

LEAST_ROWS = 50
FITTED_ON_ALL = frozenset({"probe", "head", "tfidf"})


def data_stops(n: int, people: int, quarantined: int, leaked: int, policy: Policy) -> GateResult | None:
    """Return the data gate's result if it stops the round; arguments as for `absolute.data`."""
    result = absolute.data(n, people, quarantined, leaked, policy.data, bootstrap=False)
    return result if result.blocking and result.verdict is not Verdict.PASS else None


def unseen_by_both(
    validation: Sequence[Example], manifest: ModelManifest, history: Sequence[dict[str, Any]], since: datetime
) -> list[FileRow]:
    """Return the validation rows that trained neither model; none if they are fewer than LEAST_ROWS.

    Args:
        validation: of this round.
        manifest: the candidate's.
        history: of its training. A model that was trained again on all rows has seen its validation rows.
        since: when the champion's round was claimed. Older feedback may have trained it.

    """
    if manifest.method in FITTED_ON_ALL or any(line.get("phase") == "final" for line in history):
        return []
    newest = since.astimezone(UTC).isoformat()
    given = [row for row in validation if row.source != UNCHALLENGED]  # the champion is right on its own answers
    rows = [FileRow(row.text, row.label, row.metadata) for row in given if row.order > newest]
    return rows if len(rows) >= LEAST_ROWS else []


def not_better(champion: Evidence, candidate: Evidence) -> GateResult | None:
    """Return the result that holds a candidate back if it is not better on validation rows; None if it is."""
    comparison = candidate.compared_with(champion)
    lower = candidate.losses["nll"].mean() < champion.losses["nll"].mean()
    if comparison.observed > 0 or lower:
        return None
    return gate_result(
        "validation",
        Verdict.INSUFFICIENT,
        f"not better than the champion on {comparison.n} validation rows that trained neither: {comparison.sentence}. The"
        " reference set was not looked at, and no alpha was spent",
        blocking=True,
        comparison=comparison,
        threshold=0.0,
    )
