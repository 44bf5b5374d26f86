"""The ratchet's own curve: how good each champion was when it was promoted, and how well calibrated.

Turns promotions and their rounds' records into points. Overview, Models and Review draw them. A rollback's point is that of
the version it brought back. Of the live version there is more: its accuracy on audited traffic, and the drift of its answers.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from pipelines.traffic_drift import TrafficDrift, traffic_drift
from schemas.records import Champion, RoundRecord
from services.console.project import Project
from serving.registry.registry import Registry

if TYPE_CHECKING:
    from pipelines.feature_store.event_search import EventSearch

MOST_AUDITED = 2000  # of the newest labels
DRIFT_KEPT_S = 60.0
# The figure that a task's people read first: key of a measure, name, whether more is better.
MAIN: dict[str, tuple[str, str]] = {
    "classification": ("accuracy", "accuracy"),
    "multilabel": ("accuracy", "subset accuracy"),
    "regression": ("r2", "R²"),
    "generation": ("chrf", "chrF"),
}


@dataclass(frozen=True)
class Standing:
    """One champion's figures on the reference set."""

    generation: int
    model_version: str
    value: float
    low: float | None
    high: float | None
    n: int
    ece: float | None
    ece_limit: float | None

    @property
    def title(self) -> str:
        """Return the point's tooltip."""
        within = f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None and self.high is not None else ""
        return f"generation {self.generation}, {self.model_version}: {self.value:.3f}{within} on {self.n} rows"


def main_figure(record: RoundRecord, task: str) -> float | None:
    """Return the task's main figure of a round's candidate; None before it was judged."""
    evaluation, (key, _) = record.evaluations.get("candidate"), MAIN[task]
    measure = evaluation.measures.get(key) if evaluation else None
    return measure.value if measure else getattr(evaluation, key, None)


@dataclass(frozen=True)
class LiveAccuracy:
    """Share of the audited texts of traffic that the live version answered as people labelled them, with its interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """Return the share."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % score interval (Wilson 1927), which holds for few rows and shares near 1 too."""
        z, p, n = 1.959964, self.value, self.n
        middle, spread = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
        half = spread * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def live_accuracy(registry: Registry, events: "EventSearch", model_version: str) -> LiveAccuracy | None:
    """Return how right the live version is on the audit sample, which no confidence and no feedback chose; None without labels.

    Raises OSError if the event log cannot be read.
    """
    labels = {item.text: item.label for item in registry.queue_items.decided()[-MOST_AUDITED:]}
    answers = events.answers(list(labels), model_version)
    return (
        LiveAccuracy(sum(labels[text] == answer for text, answer in answers.items()), len(answers)) if answers else None
    )


def live_drift(project: Project) -> TrafficDrift | None:
    """Return the drift of the live version's traffic, looked at within DRIFT_KEPT_S; None if it is off or too early to tell.

    Raises OSError if the event log cannot be read.
    """
    champion, settings = project.registry.champion(), project.settings.console
    if champion is None or settings.drift is None:
        return None
    version = champion.model_version

    def read() -> TrafficDrift | None:
        return traffic_drift(project.events, version, settings.drift_window)

    seen: TrafficDrift | None = project.kept.get("drift", version, DRIFT_KEPT_S, time.monotonic(), read)
    return seen


def drift_sentence(seen: TrafficDrift, limit: float) -> str:
    """Return one sentence on a drift beyond its limit."""
    return (
        f"the newest {seen.window:,} answers of {seen.model_version} differ from its first {seen.window:,}: population "
        f"stability index {seen.psi:.2f}, a shift begins at {limit:.2f}."
    )


def standings(registry: Registry, task: str, most: int = 200) -> list[Standing]:
    """Return the figures of the newest `most` champions, oldest first; champions that no round judged are left out."""
    champions = registry.history.recent_promotions(most)[::-1]
    rounds = {version.model_version: version.round_id for version in registry.history.recent_versions(10 * most)}
    records = registry.history.evaluations(rounds[c.model_version] for c in champions if c.model_version in rounds)
    points = [_standing(champion, records.get(rounds.get(champion.model_version, "")), task) for champion in champions]
    return [point for point in points if point is not None]


def _standing(champion: Champion, record: Mapping[str, Any] | None, task: str) -> Standing | None:
    evaluation = ((record or {}).get("evaluations") or {}).get("candidate")
    if not evaluation:
        return None
    key, _ = MAIN[task]
    measure = evaluation["measures"].get(key) or {}
    value = measure.get("value", evaluation.get(key))
    if value is None:
        return None
    return Standing(
        generation=champion.generation,
        model_version=champion.model_version,
        value=float(value),
        low=measure.get("low"),
        high=measure.get("high"),
        n=int(evaluation["n"]),
        ece=evaluation.get("ece"),
        ece_limit=evaluation.get("ece_null_99"),
    )
