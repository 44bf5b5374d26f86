"""Drift of traffic: a shifted mix of answers or of confidence is seen, chance and a promotion are not."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.feature_store.event_log import SCHEMAS, EventLog
from pipelines.feature_store.event_search import EventSearch
from pipelines.traffic_drift import TrafficDrift, traffic_drift

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = 1000


class Traffic:
    """Predictions of versions, stored one batch after the other."""

    def __init__(self, folder: Path) -> None:
        self.log, self.stored, self.draw = EventLog(str(folder)), 0, random.Random(7)
        self.folder = folder

    def add(self, n: int, labels: list[str], confidence: float = 0.8, version: str = "v") -> None:
        """Store `n` answers drawn from the labels, whose confidence lies around a mean."""
        numbers = range(self.stored, self.stored + n)
        times = [BEGIN + timedelta(seconds=k) for k in numbers]
        columns = {
            "topic_id": ["t"] * n, "partition": [0] * n, "offset": list(numbers), "event_timestamp": times,
            "created_timestamp": times, "prediction_id": [f"{k:032x}" for k in numbers], "user": [None] * n,
            "model_version": [version] * n, "generation": [1] * n, "text": ["x"] * n,
            "predicted_label": self.draw.choices(labels, k=n),
            "confidence": [min(1.0, self.draw.gauss(confidence, 0.05)) for _ in numbers], "probabilities": ["{}"] * n,
            "metadata": ["{}"] * n, "audit": [False] * n,
        }  # fmt: skip
        self.stored += n
        self.log.append("predictions", pa.Table.from_pydict(columns, schema=SCHEMAS["predictions"]))

    def drift(self, version: str = "v") -> TrafficDrift | None:
        """The drift of a version."""
        return traffic_drift(EventSearch(str(self.folder)), version, WINDOW)


@pytest.fixture
def traffic(tmp_path: Path) -> Traffic:
    return Traffic(tmp_path / "log")


@pytest.mark.parametrize("labels", [["a", "b", "c"], [f"label {n}" for n in range(150)]])
def test_chance_is_no_drift_however_many_labels_there_are(traffic: Traffic, labels: list[str]) -> None:
    traffic.add(2 * WINDOW - 1, labels)
    assert traffic.drift() is None, "too early to tell"
    traffic.add(1, labels)
    seen = traffic.drift()
    assert seen
    assert seen.answers is not None
    assert seen.psi < 0.1


def test_another_mix_of_answers_is_drift(traffic: Traffic) -> None:
    traffic.add(WINDOW, ["a", "b", "c"])
    traffic.add(WINDOW, ["a", "a", "a", "a", "b", "c"])
    seen = traffic.drift()
    assert seen
    assert seen.answers is not None
    assert seen.confidence is not None
    # Shares of a third each against 2/3, 1/6, 1/6: sum of (p - q) ln(p / q).
    assert seen.answers == pytest.approx(0.462, abs=0.12)
    assert seen.confidence < 0.1


def test_less_confidence_is_drift_although_the_answers_are_the_same(traffic: Traffic) -> None:
    traffic.add(WINDOW, ["a", "b"])
    traffic.add(WINDOW, ["a", "b"], confidence=0.7)
    seen = traffic.drift()
    assert seen
    assert seen.answers is not None
    assert seen.confidence is not None
    assert seen.answers < 0.1
    assert seen.confidence > 0.5


def test_a_promotion_is_no_drift_and_each_version_has_windows_of_its_own(traffic: Traffic) -> None:
    traffic.add(2 * WINDOW, ["a", "b"], version="old")
    traffic.add(2 * WINDOW, ["a", "a", "a", "b"], confidence=0.6, version="new")
    for version in ("old", "new"):
        seen = traffic.drift(version)
        assert seen
        assert seen.psi < 0.1
    assert traffic.drift("unknown") is None


def test_generated_texts_count_by_their_confidence_alone(traffic: Traffic) -> None:
    traffic.add(2 * WINDOW, [f"answer {n}" for n in range(100_000)])
    seen = traffic.drift()
    assert seen
    assert seen.answers is None
    assert seen.confidence is not None
    assert seen.psi < 0.1
