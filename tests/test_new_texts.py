"""Which texts of traffic the queue takes: new ones, each once, the newest first, and the audit sample."""

from datetime import timedelta
from pathlib import Path

import pytest

from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.settings import Settings
from tests.support.stored_rows import START, append, prediction_row


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    (tmp_path / "feature_store.yaml").write_text(default_feature_store_yaml("my-model"), encoding="utf-8")
    return FeatureStore(Settings(root=tmp_path))


def test_only_texts_that_first_came_later_are_new(store: FeatureStore) -> None:
    claimed = START + timedelta(hours=1)
    assert store.new_texts(claimed, None, 10) == ([], None)

    def sent(number: int, text: str, minutes: int, **changes: object) -> dict[str, object]:
        at = START + timedelta(minutes=minutes)
        return prediction_row(number, text=text, event_timestamp=at, created_timestamp=at, **changes)

    append(
        store,
        "predictions",
        [
            sent(0, "old", 10),
            sent(1, "marked and old", 20, audit=True),
            sent(2, "new", 70),
            sent(3, "old", 71),
            sent(4, "newer", 72),
            sent(5, "new", 73),
            sent(6, "marked", 74, audit=True),
        ],
    )

    texts, until = store.new_texts(claimed, None, 10)
    assert texts == ["marked", "new", "newer"]
    assert until == START + timedelta(minutes=74)
    assert store.new_texts(claimed, None, 2)[0] == ["marked", "new"]
    assert store.new_texts(claimed, until, 10) == ([], None)
    append(store, "predictions", [sent(7, "newest", 80)])
    assert store.new_texts(claimed, until, 10) == (["newest"], START + timedelta(minutes=80))
    assert store.new_texts(START, None, 10, audit=True)[0] == ["marked", "marked and old"]
