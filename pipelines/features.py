"""The feature store: look-ups by prediction online, labelled feedback as of a cut offline.

Turns the event log, through Feast, into what the consumer, the scheduler, rounds and the demo ask for. It is the only
user of Feast. It deliberately does not decide what feedback means for training: that is pipelines/dataset.
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipelines.event_log import EventLog
from schemas.events import PredictionMade
from schemas.settings import Settings

LABELLED = ("correction", "rating")
ONLINE = ("model_version", "predicted_label", "user")
JOINED = ("text", "predicted_label", "model_version", "metadata")
# Feedback and its prediction may be stamped by two machines: how far feedback's clock may be behind and still find it.
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class FeedbackRow:
    """One effective feedback with the prediction that it is about."""

    feedback_id: str
    prediction_id: str
    kind: str
    value: Any
    user: str | None
    time: datetime
    text: str
    predicted_label: str
    model_version: str
    metadata: dict[str, str]


def default_feature_store_yaml(project: str) -> str:
    """Feast's configuration as `ratchet init` writes it; paths are relative to its folder."""
    return f"""# Feast's own configuration. In production: online_store type redis with a connection_string, registry on Postgres.
project: {project.replace("-", "_")}
provider: local
registry:
  registry_type: sql
  path: sqlite:///state/feast_registry.db
  cache_mode: thread
  cache_ttl_seconds: 600
offline_store:
  type: pipelines.offline_store.EventLogOfflineStore
online_store:
  type: pipelines.online_store.EventTimeOnlineStore
  path: state/online.db
entity_key_serialization_version: 3
"""


# Effective feedback: one row per feedback_id (the first stored), minus what its own author withdrew, and per person,
# prediction and kind only the last by event time; people who gave no name are told apart by feedback_id. A row is within
# a cut if the cut covers its offset; a topic that a cut does not name is newer than the cut.
_EFFECTIVE = """
WITH within AS (
  SELECT f.* FROM stored f LEFT JOIN cut c ON c.place = f.topic_id || '/' || f.partition
  WHERE $everything OR f."offset" <= coalesce(c.last, -1)
), once AS (
  SELECT * FROM within
  QUALIFY row_number() OVER (PARTITION BY feedback_id ORDER BY created_timestamp, topic_id, "partition", "offset") = 1
), withdrawn AS (
  SELECT CASE WHEN json_valid(value) THEN value ->> '$' END AS feedback_id, prediction_id, "user"
  FROM once WHERE kind = 'retract'
)
SELECT f.*, f."offset" > coalesce(b.last, -1) AS beyond
FROM once f LEFT JOIN bound b ON b.place = f.topic_id || '/' || f.partition
WHERE kind <> 'retract' AND NOT EXISTS (
  SELECT 1 FROM withdrawn w WHERE w.feedback_id = f.feedback_id AND w.prediction_id = f.prediction_id
  AND w."user" IS NOT DISTINCT FROM f."user")
QUALIFY row_number() OVER (
  PARTITION BY prediction_id, kind, coalesce('u' || "user", 'f' || feedback_id)
  ORDER BY event_timestamp DESC, feedback_id DESC) = 1
ORDER BY feedback_id
"""


class FeatureStore:
    """One project's features. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Open the store and apply the definitions. Raises OSError when it cannot be opened."""
        from feast import FeatureStore as Feast
        from feast import RepoConfig

        from pipelines.feature_repo.definitions import ENTITIES, definitions

        config = yaml.safe_load(settings.path(settings.feature_store.config).read_text())
        root = settings.root.absolute()
        (root / "state").mkdir(parents=True, exist_ok=True)
        config["registry"]["path"] = _absolute(config["registry"]["path"], root)
        self._location = settings.location(settings.feature_store.event_log)
        self.log = EventLog(self._location)
        self._store = Feast(config=RepoConfig(repo_path=root, **config))
        self._entities = ENTITIES
        with (root / "state/feast.lock").open("a") as lock:
            fcntl.flock(
                lock, fcntl.LOCK_EX
            )  # several processes open the store at once; Feast's apply is no transaction
            self._apply(definitions(self._location))
        self._counted: tuple[int, dict[str, int], int] | None = None

    def write_online(self, predictions: Sequence[PredictionMade]) -> None:
        """Make predictions known to `look_up`."""
        if not predictions:
            return
        view = self._store.get_feature_view("predictions")
        rows = [_online_row(p) for p in predictions]
        self._store._get_provider().online_write_batch(self._store.config, view, rows, None)  # feast's bulk path

    def look_up(self, prediction_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """What is known online of predictions: model_version, predicted_label, user; unknown ids are left out."""
        if not prediction_ids:
            return {}
        answer = self._store.get_online_features(
            features=[f"predictions:{name}" for name in ONLINE],
            entity_rows=[{"prediction_id": i} for i in prediction_ids],
        ).to_dict()
        return {
            i: {name: answer[name][n] for name in ONLINE}
            for n, i in enumerate(answer["prediction_id"])
            if answer["model_version"][n] is not None
        }

    def current_cut(self) -> dict[str, int]:
        """Last stored offset of feedback, by '<topic_id>/<partition>'."""
        return self.log.positions("feedback")

    def effective_feedback(
        self, cut: Mapping[str, int] | None = None, *, bound: Mapping[str, int] | None = None
    ) -> pa.Table:
        """Effective feedback as of `cut` (unset: as of now), read through Feast, in order of feedback_id.

        Columns of the feedback table, and `beyond`: stored after `bound`.
        """
        with duckdb.connect() as connection:
            connection.register("stored", self._all("feedback"))
            connection.register("cut", _places(cut or {}))
            connection.register("bound", _places(bound or {}))
            return connection.sql(_EFFECTIVE, params={"everything": cut is None}).to_arrow_table()

    def labelled_feedback(self, cut: Mapping[str, int] | None = None) -> list[FeedbackRow]:
        """Effective feedback up to `cut`, joined point-in-time with its prediction; without one it is left out."""
        feedback = self.effective_feedback(cut)
        if not feedback.num_rows:
            return []
        frame = feedback.select(["feedback_id", "prediction_id"]).to_pandas()
        frame["event_timestamp"] = pc.add(feedback["event_timestamp"], pa.scalar(CLOCK_SKEW)).to_pandas()
        features = [f"predictions:{name}" for name in JOINED]
        joined = self._store.get_historical_features(entity_df=frame, features=features).to_arrow()
        known = {row["feedback_id"]: row for row in joined.to_pylist() if row["text"] is not None}
        return [
            FeedbackRow(
                feedback_id=row["feedback_id"],
                prediction_id=row["prediction_id"],
                kind=row["kind"],
                value=json.loads(row["value"]),
                user=row["user"],
                time=row["event_timestamp"],
                text=prediction["text"],
                predicted_label=prediction["predicted_label"],
                model_version=prediction["model_version"],
                metadata=json.loads(prediction["metadata"] or "{}"),
            )
            for row in feedback.to_pylist()
            if (prediction := known.get(row["feedback_id"])) is not None
        ]

    def count_labelled_since(self, cut: Mapping[str, int]) -> int:
        """Distinct effective labelled feedback stored beyond `cut`. Cheap while nothing was stored."""
        version = self.log.version("feedback")
        if self._counted is None or self._counted[:2] != (version, cut):
            feedback = self.effective_feedback(bound=cut)
            labelled = pc.is_in(feedback["kind"], value_set=pa.array(LABELLED))
            count = pc.sum(pc.and_(labelled, feedback["beyond"])).as_py() or 0
            self._counted = (version, dict(cut), int(count))
        return self._counted[2]

    def stored_events(self) -> dict[str, int]:
        """Distinct predictions and feedback, read back through Feast."""
        return {name: int(pc.count_distinct(self._all(name, ())[key]).as_py()) for name, key in self._entities.items()}

    def _apply(self, wanted: Sequence[Any]) -> None:
        """Tell Feast's registry what it does not know yet, or knows differently."""
        views = {thing.name: thing for thing in wanted if thing.name in self._entities}
        known = {view.name: view for view in self._store.list_feature_views()}
        if known.keys() != views.keys() or any(
            known[n].source != v.source or known[n].schema != v.schema for n, v in views.items()
        ):
            self._store.apply(list(wanted))
            self._store.refresh_registry()

    def _all(self, name: str, features: Sequence[str] | None = None) -> pa.Table:
        view = self._store.get_feature_view(name)
        key = self._entities[name]
        if features is None:
            features = [field.name for field in view.features]
        job = self._store._get_provider().offline_store.pull_all_from_table_or_query(
            config=self._store.config,
            data_source=view.batch_source,
            join_key_columns=[key],
            feature_name_columns=list(features),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
            start_date=datetime(1970, 1, 1, tzinfo=UTC),
            end_date=datetime(9999, 1, 1, tzinfo=UTC),
        )
        return job.to_arrow()


def _absolute(url: str, root: Path) -> str:
    """A SQLAlchemy URL with a relative SQLite path made absolute."""
    prefix = "sqlite:///"
    return f"{prefix}{root / url.removeprefix(prefix)}" if url.startswith(prefix) else url


def _places(cut: Mapping[str, int]) -> pa.Table:
    schema = pa.schema([("place", pa.string()), ("last", pa.int64())])
    return pa.table({"place": list(cut), "last": list(cut.values())}, schema=schema)


def _online_row(prediction: PredictionMade) -> tuple[Any, dict[str, Any], datetime, None]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    data = prediction.data
    known = {"model_version": data.model_version, "predicted_label": data.label, "user": data.user}
    key = EntityKey(join_keys=["prediction_id"], entity_values=[Value(string_val=data.prediction_id)])
    values = {name: Value() if value is None else Value(string_val=value) for name, value in known.items()}
    return key, values, prediction.time, None
