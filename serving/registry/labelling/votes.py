"""Votes: the labels that people gave one queue item become its state and its label.

Turns votes into a decision, for queue.py. Pure functions. One label decides. A second, different one makes a conflict, which a
third person resolves by majority; without a majority the item is disputed and does not count.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.queue import ItemState, LabelOutcome

UNCLEAR_AFTER = 2  # people who are unsure, before an item without a label is offered to nobody


@dataclass(frozen=True)
class Vote:
    """One person's label; None for a skipped item, `unsure` if the person could not tell."""

    label: str | None
    unsure: bool = False


def decide(votes: Mapping[str, Vote]) -> tuple[ItemState, str | None]:
    """Return an item's state and the label that counts, from the votes by reviewer."""
    labels = Counter(vote.label for vote in votes.values() if vote.label is not None)
    given = labels.total()
    if not given:
        unsure = sum(vote.unsure for vote in votes.values())
        return (ItemState.UNCLEAR if unsure >= UNCLEAR_AFTER else ItemState.OPEN), None
    label, most = labels.most_common(1)[0]
    if 2 * most > given:
        return ItemState.LABELLED, label
    return (ItemState.CONFLICT if given == 2 else ItemState.DISPUTED), None


def outcome(before: Mapping[str, Vote], reviewer: str, label: str, was: ItemState, becomes: ItemState) -> LabelOutcome:
    """Return what a label of `reviewer` did to an item with these votes before."""
    earlier = before.get(reviewer)
    if earlier is not None and earlier.label == label:
        return LabelOutcome.UNCHANGED
    if becomes is ItemState.CONFLICT:
        return LabelOutcome.CONFLICT
    if becomes is ItemState.DISPUTED:
        return LabelOutcome.DISPUTED
    if was in (ItemState.CONFLICT, ItemState.DISPUTED):
        return LabelOutcome.RESOLVED
    if earlier is not None and earlier.label is not None:
        return LabelOutcome.REPLACED
    others = any(vote.label is not None for name, vote in before.items() if name != reviewer)
    return LabelOutcome.AGREED if others else LabelOutcome.RECORDED
