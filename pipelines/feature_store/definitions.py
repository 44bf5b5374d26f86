"""Define Feast's entities, sources and feature views over the event log.

feast_views.py applies them; a test compares their fields with the log's columns.
"""

from datetime import timedelta
from typing import Any

import pyarrow as pa
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Bool, Float64, Int64, String

from pipelines.feature_store.event_log import SCHEMAS

_TYPES = {pa.string(): String, pa.int64(): Int64, pa.int32(): Int64, pa.float64(): Float64, pa.bool_(): Bool}
ENTITIES = {"predictions": "prediction_id", "feedback": "feedback_id"}
TIMES = ("event_timestamp", "created_timestamp")


def definitions(event_log: str) -> list[Any]:
    """Return the entities and views over the log at `event_log`.

    Predictions are also written online, live counts only online.
    """
    objects: list[Any] = []
    for name, key in ENTITIES.items():
        entity = Entity(name=key, join_keys=[key], value_type=ValueType.STRING)
        source = FileSource(
            name=f"{name}_log",
            path=f"{event_log}/{name}",
            file_format=DeltaFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        )
        fields = [Field(name=f.name, dtype=_TYPES[f.type]) for f in SCHEMAS[name] if f.name not in (key, *TIMES)]
        view = FeatureView(
            name=name,
            entities=[entity],
            schema=[Field(name=key, dtype=String), *fields],
            source=source,
            ttl=timedelta(0),
            online=name == "predictions",
        )
        objects += [entity, view]
    return [*objects, *_live(objects[-1].source)]


def _live(source: FileSource) -> list[Any]:
    """Return entity and view of live feedback counts: one row a topic-partition, written by the consumer that owns it.

    They exist online only. Feast requires a source, so any is named.
    """
    topic_partition = Entity(name="place", join_keys=["place"], value_type=ValueType.STRING)
    fields = [Field(name="place", dtype=String), Field(name="counts", dtype=String)]
    view = FeatureView(
        name="live_feedback", entities=[topic_partition], schema=fields, source=source, ttl=timedelta(0), online=True
    )
    return [topic_partition, view]
