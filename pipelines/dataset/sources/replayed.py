"""Replayed answers: unchallenged predictions of the champion that train beside people's corrections.

People correct what is wrong more often than they confirm what is right. A model that trains on corrections alone learns that
the champion is usually wrong, and unlearns what it knew. Its unchallenged answers restore the mix of traffic, as pseudo-labels
(Lee 2013) do in semi-supervised learning. docs/lab-notes.md compares this with propensity weights and with nothing.

round_inputs.py calls `wanted`, then adds the rows to the feedback as a kind of their own.
"""

from collections.abc import Iterable
from math import ceil

from pipelines.feature_store.store import FeedbackRow
from schemas.targets import LABELLED, BadTarget, Task, canonical

MOST = 10_000


def wanted(feedback: Iterable[FeedbackRow], accuracy: float | None, task: Task, per_correction: float) -> int:
    """Return how many unchallenged answers restore the share of right answers that fair rows show.

    Args:
        feedback: effective feedback of the round.
        accuracy: of the champion on the reference set; None without one, and for tasks whose answers are not right or wrong.
        task: the task.
        per_correction: at most so many for each correction; 0: none.

    """
    if accuracy is None or task not in LABELLED:
        return 0
    corrections = confirmations = 0
    for row in feedback:
        if row.kind == "correction":
            try:
                right = canonical(task, row.value) == row.predicted_label
            except BadTarget:
                continue
            confirmations += right
            corrections += not right
    share = min(accuracy, 0.99)
    missing = ceil(corrections * share / (1 - share)) - confirmations
    return max(0, min(missing, int(per_correction * corrections), MOST))
