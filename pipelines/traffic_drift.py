"""Drift of traffic: how far the live version's newest answers have moved from its first ones.

Turns the answers of two windows of predictions into population stability indices. The console shows it and sends a webhook
beyond a threshold. Both windows are one version's, so that a promotion is no drift; no label of anybody is needed.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import TYPE_CHECKING

from pipelines.metrics.stability import psi

if TYPE_CHECKING:
    from pipelines.feature_store.event_search import EventSearch

# PSI of equal distributions is about (bins - 1) * 2 / window: 0.04 for 20 bins and 1,000 predictions (Yurdakul 2018).
MOST_BINS = 20
CONFIDENCE_BINS = 10
OTHERS = "all other answers"


@dataclass(frozen=True)
class TrafficDrift:
    """PSI of the answers and of their confidence; None where the task has none. Each window holds `window` predictions."""

    model_version: str
    window: int
    answers: float | None
    confidence: float | None

    @property
    def psi(self) -> float:
        """Return the larger of both."""
        return max(self.answers or 0.0, self.confidence or 0.0)


def traffic_drift(events: "EventSearch", model_version: str, window: int) -> TrafficDrift | None:
    """Return the drift from a version's first `window` predictions to its newest; None until it has made twice as many.

    Answers are labels, or sets of labels; numbers and generated texts, which seldom repeat, count by their confidence alone.
    Raises OSError if the event log cannot be read.
    """
    if events.answered(model_version) < 2 * window:
        return None
    first, newest = (events.answers_of(model_version, window, newest=newest) for newest in (False, True))
    return TrafficDrift(
        model_version, window, _of_answers([answer for answer, _ in first], [answer for answer, _ in newest]),
        _of_confidence([c for _, c in first if c is not None], [c for _, c in newest if c is not None]),
    )  # fmt: skip


def _of_answers(first: Sequence[str | None], newest: Sequence[str | None]) -> float | None:
    """Return the PSI of the commonest first answers, all others together; None where answers seldom repeat."""
    counts = Counter(answer or "" for answer in first)
    if len(counts) > len(first) / 2:
        return None
    common = {answer for answer, _ in counts.most_common(MOST_BINS - 1)}

    def binned(answers: Sequence[str | None]) -> Counter[str]:
        return Counter(answer if (answer or "") in common and answer else OTHERS for answer in answers)

    return psi(binned(first), binned(newest))


def _of_confidence(first: Sequence[float], newest: Sequence[float]) -> float | None:
    """Return the PSI by deciles of the first confidences; None without them."""
    if len(first) < CONFIDENCE_BINS or not newest:
        return None
    cuts = sorted(set(quantiles(first, n=CONFIDENCE_BINS)))

    def binned(values: Sequence[float]) -> Counter[str]:
        return Counter(str(bisect_right(cuts, value)) for value in values)

    return psi(binned(first), binned(newest))
