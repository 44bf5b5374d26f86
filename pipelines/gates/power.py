"""Power: what a reference set of n rows can show, said before anything is trained.

Turns numbers of rows, a policy and the champion's errors into sentences. round_judgement.py puts them into reports,
services/checks prints them at `ratchet init` and `doctor`. Normal approximations, which `make bench-evidence` compares with
simulation; the gates themselves are exact where they can be. Pure functions.
"""

from math import ceil, log, sqrt

from scipy.stats import norm

from pipelines.gates.policy import Policy

GAIN, CHURN = 0.03, 0.07  # the usual question: three points better, seven rows in a hundred answered differently
WORTHWHILE = 0.6  # share of rounds that should find it
MOST_ROWS = 1_000_000
# The Brier score needs 1 / EFFICIENCY of the rows that accuracy needs: the least of what was measured (docs/evidence.md).
EFFICIENCY = 1.5
BOTH_TESTED = 1.5  # testing accuracy and Brier score at once costs about this factor of alpha
DISAGREEMENTS = 40  # labels that settle a gain of three points in half of the rounds


def chance(n: int, policy: Policy, alpha: float, *, gain: float = GAIN, churn: float = CHURN) -> float:
    """Return the probability that a look at n rows shows a true gain in accuracy and excludes a loss beyond the margin.

    Args:
        n: judging rows.
        policy: gives metric, margin and levels.
        alpha: level of the look.
        gain: true difference in accuracy.
        churn: share of rows that only one of the two models has right.

    """
    if not n:
        return 0.0
    error = sqrt((churn - gain**2) / n)
    either = policy.superiority.metric == "accuracy_or_brier"
    needed, factor = (alpha / BOTH_TESTED, sqrt(EFFICIENCY)) if either else (alpha, 1.0)
    shown = norm.cdf(factor * gain / error - norm.isf(needed))
    unharmed = norm.cdf((gain + policy.non_inferiority.margin) / error - norm.isf(policy.harm_level(alpha)))
    return float(min(shown, unharmed))


def rows_for(share: float, policy: Policy, alpha: float) -> int:
    """Return how many rows find the usual gain in this share of rounds, at most MOST_ROWS."""
    low, high = 1, MOST_ROWS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle, policy, alpha) >= share else (middle + 1, high)
    return low


def reference_line(n: int, policy: Policy, alpha: float) -> str:
    """Return what n judging rows can show at a look with this alpha, and what would make it more."""
    share = chance(n, policy, alpha)
    line = f"{n} reference rows; a gain of {GAIN * 100:.0f} points would be found in {100 * share:.0f} of 100 rounds"
    if share >= WORTHWHILE:
        return line
    more = 10 * ceil((rows_for(WORTHWHILE, policy, alpha) - n) / 10)
    return f"{line}; {more} more rows make it {100 * WORTHWHILE:.0f}, or label about {DISAGREEMENTS} disagreements per round"


def out_of_reach(wrong: int, n: int, policy: Policy, alpha: float) -> str | None:
    """Return why no candidate can be shown to be better, if so: even one that mends all errors would not be.

    `wrong` is the number of judging rows that the champion has wrong. The Brier score and NLL can improve without errors.
    """
    if policy.superiority.metric != "accuracy" or not policy.superiority.blocking or not n:
        return None
    needed = ceil(log(1 / alpha) / log(2))
    if wrong >= needed:
        return None
    rows = f"{ceil(needed * n / wrong)} rows like these" if wrong else "rows that it has wrong"
    return (
        f"out of reach: the champion is wrong on {wrong} of {n} rows, and a gain in accuracy takes {needed} mended and none"
        f' spoilt at alpha {alpha:.2g}. Set superiority.metric = "accuracy_or_brier" in policy.toml, or use {rows}'
    )
