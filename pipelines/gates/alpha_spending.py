"""Alpha spending: how much of an error budget a judgement against one champion may use.

Turns the number of a look at the reference set into its share of `superiority.alpha`, and the number of a judgement by labels
into its share of theirs. policy.py multiplies by alpha, the ledger counts looks. Pure functions.

All shares add up to 1 at most, so by Bonferroni's inequality the chance that any look promotes a candidate without a gain stays
below alpha: whatever the correlation of the looks, and whatever was decided after each. The largest part is for the first look,
where most gains are. Looks up to EVEN_UNTIL have equal parts of the next one, because a later candidate is not less probably
better. What is left of a `Schedule` is a series without end. FRESH is apart: looks that bring rows on which this champion was
never judged spend it besides, by a series that decays fast, because they are rare.
"""

from dataclasses import dataclass

EVEN_UNTIL = 20
FRESH = 0.2  # share of the reference set's budget for rows that are new to a champion after its first look
ONE_LOOK = 0.05  # level of a one-sided test that belongs to a single look


@dataclass(frozen=True)
class Schedule:
    """Shares of a budget: of look 1, of looks 2 to EVEN_UNTIL together, and of all later ones together."""

    first: float
    even: float
    later: float

    def share_at(self, look: int) -> float:
        """Return the share of the `look`-th look (from 1)."""
        if look == 1:
            return self.first
        if look <= EVEN_UNTIL:
            return self.even / (EVEN_UNTIL - 1)
        return self.later * EVEN_UNTIL / (look * (look - 1))


REFERENCE = Schedule(first=0.33, even=0.4, later=0.07)
LABELS = Schedule(first=0.35, even=0.6, later=0.05)


def share_at(look: int, fresh: int | None = None) -> float:
    """Return the share of alpha that a look at the reference set may spend.

    Args:
        look: its number (from 1) among all looks at this champion.
        fresh: its number (from 1) among the looks that bring rows on which this champion was never judged; None if it brings
            none. The first look always does.

    """
    return REFERENCE.share_at(look) + (FRESH / (fresh * (fresh - 1)) if fresh and fresh > 1 else 0.0)
