"""Stored events of every schema version, as producers of other versions wrote them: each must stay readable for ever.

samples/ holds, for each event and version, one with every field, `.least` with the required ones alone (a producer that is
behind) and `.ahead` with fields that nobody knows yet. A field added to an event goes into its sample in the same commit.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipelines.feature_store.event_rows import BadMessage, read_event, row_of
from schemas.events import FeedbackReceived, PredictionMade

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
NOW = datetime(2026, 11, 24, 12, 1, tzinfo=UTC)


def table(sample: Path) -> str:
    return "predictions" if sample.name.startswith("prediction") else "feedback"


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.name for sample in SAMPLES])
def test_an_event_of_any_version_becomes_a_row(sample: Path) -> None:
    row = row_of(read_event(sample.read_bytes(), table(sample)), NOW, "t", 0, 0)
    assert row["prediction_id"] == "019ab5e0-8c00-7000-8000-000000000001"
    assert row["event_timestamp"] == datetime(2026, 11, 24, 12, tzinfo=UTC)
    expected = (
        {"text": "where is my card? write to <EMAIL>"} if table(sample) == "predictions" else {"value": '"lost_card"'}
    )
    assert row.items() >= expected.items()
    assert row["user"] == (None if ".least." in sample.name else "5f2d")


@pytest.mark.parametrize(
    ("kind", "event"), [("prediction.made", PredictionMade), ("feedback.received", FeedbackReceived)]
)
def test_samples_hold_every_field_of_today_and_the_least_one_only_what_is_required(
    kind: str, event: type[BaseModel]
) -> None:
    version = event.model_fields["type"].default.rpartition(".")[2]
    folder = Path(__file__).parent / "samples"
    full, least = (
        json.loads((folder / f"{kind}.{version}{which}.json").read_text(encoding="utf-8")) for which in ("", ".least")
    )
    data = event.model_fields["data"].annotation
    assert isinstance(data, type) and issubclass(data, BaseModel)
    assert full.keys() == event.model_fields.keys()
    assert full["data"].keys() == data.model_fields.keys()
    required = {name for name, field in data.model_fields.items() if field.is_required()}
    assert least["data"].keys() == required
    assert event.model_validate(full).model_dump(mode="json") == full


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.name for sample in SAMPLES])
def test_an_event_of_a_kind_not_known_yet_is_a_dead_letter_until_we_know_it(sample: Path) -> None:
    unknown = sample.read_bytes().replace(b".v1", b".v9")
    with pytest.raises(BadMessage):
        read_event(unknown, table(sample))
