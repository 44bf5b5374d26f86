"""Replayed answers: what nobody corrected trains beside corrections, and never against a person."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from pipelines.dataset.cleaning.aggregate import aggregate
from pipelines.dataset.examples import Drops, Example
from pipelines.dataset.sources.collect import from_feedback
from pipelines.dataset.sources.replayed import wanted
from pipelines.feature_store.store import UNCHALLENGED
from pipelines.feature_store.unchallenged import unchallenged
from tests.support.dataset_rounds import LABELS, said

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def predictions(n: int, **changes: dict[int, object]) -> pa.Table:
    """Predictions p00 ... of version v, surer with their number, a minute apart."""
    columns: dict[str, list[object]] = {
        "prediction_id": [f"p{k:02d}" for k in range(n)],
        "text": [f"text {k}" for k in range(n)],
        "predicted_label": ["money"] * n,
        "confidence": [k / n for k in range(n)],
        "audit": [False] * n,
        "model_version": ["v"] * n,
        "metadata": ["{}"] * n,
        "created_timestamp": [NOW + timedelta(minutes=k) for k in range(n)],
    }
    for name, values in changes.items():
        for row, value in values.items():
            columns[name][row] = value
    return pa.table(columns)


def ids(table: pa.Table, answered: list[str], most: int = 100, until: datetime = NOW + timedelta(days=1)) -> list[str]:
    rows = unchallenged(table, pa.table({"prediction_id": pa.array(answered, pa.string())}), "v", until, most)
    found: list[str] = rows["prediction_id"].to_pylist()
    return found


def test_the_surer_half_of_what_nobody_answered_is_replayed() -> None:
    assert ids(predictions(8), []) == ["p04", "p05", "p06", "p07"]
    assert ids(predictions(8), ["p05", "p07"]) == ["p03", "p04", "p06"]
    assert ids(predictions(8), [], most=2) == ["p06", "p07"], "the newest"
    assert ids(predictions(8), [], most=0) == []
    assert ids(predictions(4).slice(0, 0), []) == []


def test_the_audit_sample_other_versions_and_later_predictions_are_left_out() -> None:
    table = predictions(8, audit={7: True, 6: None}, model_version={5: "older"})
    assert ids(table, []) == ["p03", "p04", "p06"]
    assert ids(predictions(8), [], until=NOW + timedelta(minutes=3)) == ["p02", "p03"]


@pytest.mark.parametrize(
    ("right", "wrong", "accuracy", "expected"),
    [
        (0, 100, 0.75, 300),  # three right answers to a wrong one
        (100, 100, 0.75, 200),
        (300, 100, 0.75, 0),  # a fair mix
        (0, 100, 0.95, 300),  # three a correction at most
        (0, 100, None, 0),
        (50, 0, 0.9, 0),
    ],
)
def test_as_many_as_restore_the_mix_of_traffic(right: int, wrong: int, accuracy: float | None, expected: int) -> None:
    rows = [said(f"t{n}", LABELS[n % 3], n) for n in range(right)]  # `said` predicts LABELS[n % 3]
    rows += [said(f"w{n}", LABELS[(n + 1) % 3], n) for n in range(wrong)]
    assert wanted(rows, accuracy, "classification", 3.0) == expected
    assert wanted(rows, accuracy, "regression", 3.0) == 0
    assert wanted(rows, accuracy, "classification", 0) == 0


def test_a_replayed_answer_trains_and_never_outvotes_a_person() -> None:
    drops = Drops()
    [row] = from_feedback([said("a text", "ignored", 0, kind=UNCHALLENGED)], drops, "classification")
    assert (row.label, row.source, row.weight, row.person) == (LABELS[0], UNCHALLENGED, 1.0, "u0")
    person = Example(text="a text", label="money", source="rating", weight=0.5, person="u1")
    replayed = [Example(text="a text", label="football", source=UNCHALLENGED) for _ in range(5)]
    elected = aggregate("a text", [*replayed, person], drops, "classification")
    assert elected is not None
    assert (elected.label, elected.source) == ("money", "rating")
    assert drops.counts["outvoted"] == 5
    alone = aggregate("a text", replayed, Drops(), "classification")
    assert alone is not None
    assert (alone.label, alone.weight) == ("football", 1.0)
