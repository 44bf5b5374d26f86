"""Rows of the event log as the consumer would store them.

The tests of the log, of the feature store and of folders use them.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.store import FeatureStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def rows(start: int, stop: int, *, topic_id: str = "t", partition: int = 0) -> pa.Table:
    """Feedback at offsets start..stop-1 of one partition."""
    made = [
        {
            "feedback_id": f"{topic_id}-{partition}-{offset}",
            "prediction_id": f"p{offset}",
            "kind": "correction",
            "value": '"a"',
            "event_timestamp": NOW,
            "created_timestamp": NOW,
            "topic_id": topic_id,
            "partition": partition,
            "offset": offset,
        }
        for offset in range(start, stop)
    ]
    return pa.Table.from_pylist(made, schema=SCHEMAS["feedback"])


def prediction_row(number: int, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "prediction_id": f"p{number}",
        "model_version": "v1",
        "generation": 1,
        "text": f"text {number}",
        "predicted_label": "a",
        "confidence": 0.5,
        "probabilities": '{"a": 0.5}',
        "metadata": '{"channel": "ios"}',
        "audit": False,
        "event_timestamp": START,
        "created_timestamp": START,
        "topic_id": "P",
        "partition": 0,
        "offset": number,
    }
    return row | changes


def said(
    feedback_id: str,
    prediction: int,
    value: object,
    offset: int,
    *,
    kind: str = "correction",
    user: str | None = None,
    seconds: float = 10,
    topic_id: str = "F",
    stored: float = 0,
) -> dict[str, object]:
    return {
        "feedback_id": feedback_id,
        "prediction_id": f"p{prediction}",
        "kind": kind,
        "value": json.dumps(value),
        "user": user,
        "event_timestamp": START + timedelta(seconds=seconds),
        "created_timestamp": START + timedelta(seconds=100 + stored),
        "topic_id": topic_id,
        "partition": 0,
        "offset": offset,
    }


def append(store: FeatureStore, name: str, rows: Iterable[dict[str, object]]) -> None:
    store.log.append(name, pa.Table.from_pylist(list(rows), schema=SCHEMAS[name]))
