"""Aggregation: one row stands for a cluster of near-duplicates, with the votes of all.

Turns the members of a cluster into one example, or none where they disagree. build.py calls it for every cluster. It
deliberately knows no sides.

Files outvote people: what was curated is not overruled by feedback. A thumbs-down takes its weight from the label that it
rejects.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipelines.dataset.examples import SOURCES, Drops, Example


def aggregate(text: str, members: Sequence[Example], drops: Drops) -> Example | None:
    """The example that trains for these near-duplicates of `text`; all other members are counted as dropped.

    The label has the most votes; a tie is nobody's. Its weight is what the votes come to, at most 1.
    """
    votes: Counter[str] = Counter()
    for e in members:
        votes[e.label] += -e.votes if e.rejects else e.votes  # type: ignore[assignment]  # votes have fractions
    ranked = sorted(votes.items(), key=lambda vote: (-vote[1], vote[0]))
    label, most = ranked[0]
    if most <= 0:
        return _rejected(text, members, ranked[-1][0], drops)
    if len(ranked) > 1 and ranked[1][1] == most:
        _drop(members, None, label, "disagreement", drops)
        return None
    chosen = min((e for e in members if e.label == label and not e.rejects), key=_rank)
    _drop(members, chosen, label, "outvoted", drops)
    return replace(chosen, text=text, weight=min(1.0, most))


def _rejected(text: str, members: Sequence[Example], label: str, drops: Drops) -> Example | None:
    """Without a label left, the one most rejected is ruled out, unless somebody had given it."""
    if not all(e.rejects for e in members):
        _drop(members, None, label, "disagreement", drops)
        return None
    chosen = min((e for e in members if e.label == label), key=_rank)
    _drop(members, chosen, label, "outvoted", drops)
    return replace(chosen, text=text)


def _drop(members: Sequence[Example], chosen: Example | None, label: str, reason: str, drops: Drops) -> None:
    for e in members:
        if e is not chosen:
            agrees = chosen is not None and e.label == label and e.rejects == chosen.rejects
            drops.add("duplicate" if agrees else reason, e.text)


def _rank(example: Example) -> tuple[int, str, str, str]:
    return SOURCES.index(example.source), example.order, example.text, example.person or ""
