"""Merge each cluster of near-duplicates into one row by weighted vote, or into none if the members disagree.

Files outvote people, so feedback never overrules curated rows. A thumbs-down subtracts its weight from the label that it
rejects. ELECTIONS has the voting rule of each task. groups.py calls `aggregate` for every cluster.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.dataset.examples import SOURCES, UNCHALLENGED, Drops, Example
from schemas.targets import Task, canonical, labels_of


@dataclass(frozen=True)
class Elected:
    """The winning target, its votes net of those against it, and the drop reason of rows with another target."""

    label: str
    weight: float
    rejects: bool = False
    others: str = "outvoted"


def aggregate(text: str, members: Sequence[Example], drops: Drops, task: Task) -> Example | None:
    """Return the one example for these near-duplicates of `text`, or None if there is no winner.

    Its weight is the net votes, at most 1. All other members are counted in `drops`.
    """
    elected = ELECTIONS[task]([e for e in members if e.source != UNCHALLENGED] or members)
    if elected is None:
        for e in members:
            drops.add("disagreement", e.text)
        return None
    agrees = [e.label == elected.label and e.rejects == elected.rejects for e in members]
    chosen = min([e for e, same in zip(members, agrees, strict=True) if same] or members, key=_rank)
    for e, same in zip(members, agrees, strict=True):
        if e is not chosen:
            drops.add("duplicate" if same else elected.others, e.text)
    return replace(chosen, text=text, label=elected.label, weight=min(1.0, elected.weight))


def most_votes(members: Sequence[Example]) -> Elected | None:
    """Return the label with the most votes; None for a tie.

    If no label has positive votes and all members are rejections, the most rejected label is returned as a rejection.
    """
    ranked = sorted(_votes(members).items(), key=lambda vote: (-vote[1], vote[0]))
    label, most = ranked[0]
    if most > 0:
        tied = len(ranked) > 1 and ranked[1][1] == most
        return None if tied else Elected(label, most)
    if not all(e.rejects for e in members):
        return None
    label = ranked[-1][0]
    return Elected(label, max(e.weight for e in members if e.label == label), rejects=True)


def newest_of_most_votes(members: Sequence[Example]) -> Elected:
    """Return the text with the most votes; of tied ones the newest.

    People seldom answer a question in the same words. If ties had no winner, the most frequent prompts would never train.
    There are no rejections of texts.
    """
    votes = _votes(members)
    most = max(votes.values())
    return Elected(max((e.order, e.label) for e in members if votes[e.label] == most)[1], most)


def majority_of_each(members: Sequence[Example]) -> Elected | None:
    """Return the set of labels that each have a majority; None if any label is tied.

    A rejection counts only against exactly the winning set.
    """
    given = [(set(labels_of("multilabel", e.label)), e.votes) for e in members if not e.rejects]
    if not given:
        return most_votes(members)
    total = sum(votes for _, votes in given)
    margins = {
        label: 2 * sum(votes for labels, votes in given if label in labels) - total
        for label in set().union(*(labels for labels, _ in given))
    }
    elected = canonical("multilabel", [label for label, margin in margins.items() if margin > 0])
    against = sum(e.votes for e in members if e.rejects and e.label == elected)
    weight = min([total, *map(abs, margins.values())]) - against
    return Elected(elected, weight) if weight > 0 else None


def middle(members: Sequence[Example]) -> Elected:
    """Return the weighted median of the numbers; the mean of the two middle ones if it lies between them."""
    ordered = sorted((float(e.label), e.votes) for e in members)
    total = sum(votes for _, votes in ordered)
    below, medians = 0.0, list[float]()
    for number, votes in ordered:
        if below <= total / 2 <= below + votes:
            medians.append(number)
        below += votes
    label = canonical("regression", (medians[0] + medians[-1]) / 2)
    return Elected(label, total, others="merged into a median")


ELECTIONS: Mapping[Task, Callable[[Sequence[Example]], Elected | None]] = {
    "classification": most_votes,
    "multilabel": majority_of_each,
    "regression": middle,
    "generation": newest_of_most_votes,
}


def _votes(members: Sequence[Example]) -> dict[str, float]:
    """Return the votes for each label minus the votes against it."""
    votes: dict[str, float] = defaultdict(float)
    for e in members:
        votes[e.label] += -e.votes if e.rejects else e.votes
    return votes


def _rank(example: Example) -> tuple[int, str, str, str]:
    return SOURCES.index(example.source), example.order, example.text, example.person or ""
