"""The feature store: look-ups by prediction online, labelled feedback as of a cut offline.

Turns the event log, through Feast, into what the consumer, the scheduler, rounds and the demo ask for. It is the only user
of Feast. It deliberately does not decide what feedback means for training: that is pipelines/dataset.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import yaml

from pipelines.event_log import EventLog
from schemas.events import PredictionMade
from schemas.settings import Settings

os.environ.setdefault("FEAST_USAGE", "False")

LABELLED = ("correction", "rating")
ONLINE = ("model_version", "predicted_label", "user")
JOINED = ("text", "predicted_label", "model_version", "metadata")


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


# Effective feedback: one row per feedback_id (the first stored), minus what was withdrawn by its own author, and per person,
# prediction and kind only the last by event time; people who gave no name are told apart by feedback_id.
_EFFECTIVE = """
WITH once AS (
  SELECT * FROM feedback QUALIFY row_number() OVER (PARTITION BY feedback_id ORDER BY event_timestamp, "offset") = 1
), withdrawn AS (
  SELECT value ->> '$' AS feedback_id, "user" FROM once WHERE kind = 'retract'
)
SELECT * FROM once f
WHERE kind <> 'retract' AND NOT EXISTS (
  SELECT 1 FROM withdrawn w WHERE w.feedback_id = f.feedback_id AND w."user" IS NOT DISTINCT FROM f."user")
QUALIFY row_number() OVER (
  PARTITION BY prediction_id, kind, coalesce("user", feedback_id) ORDER BY event_timestamp DESC, feedback_id DESC) = 1
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
        path = config["registry"]["path"]
        if path.startswith("sqlite:///state"):
            config["registry"]["path"] = f"sqlite:///{root / path.removeprefix('sqlite:///')}"
        (root / "state").mkdir(parents=True, exist_ok=True)
        self._location = settings.location(settings.feature_store.event_log)
        self.log = EventLog(self._location)
        self._store = Feast(config=RepoConfig(repo_path=root, **config))
        self._entities = ENTITIES
        wanted = definitions(self._location)
        known = {view.name for view in self._store.list_feature_views()}
        if known != set(ENTITIES):
            self._store.apply(wanted)
            self._store.refresh_registry()
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

    def effective_feedback(self, cut: dict[str, int] | None = None, *, after: dict[str, int] | None = None) -> pa.Table:
        """Effective feedback rows, read through Feast: those up to `cut`, and beyond `after`, if given."""
        feedback = self._all("feedback")
        with duckdb.connect() as connection:
            connection.register("stored", feedback)
            condition = "true"
            for bound, comparison, absent in ((cut, "<=", "-1"), (after, ">", "-1")):
                if bound is not None:
                    cases = " ".join(f"WHEN '{place}' THEN {int(last)}" for place, last in bound.items())
                    limit = f"CASE topic_id || '/' || partition {cases} ELSE {absent} END" if cases else absent
                    condition += f' AND "offset" {comparison} {limit}'
            connection.execute(f"CREATE VIEW feedback AS SELECT * FROM stored WHERE {condition}")  # noqa: S608
            return connection.sql(_EFFECTIVE).to_arrow_table()

    def labelled_feedback(self, cut: dict[str, int] | None = None) -> list[FeedbackRow]:
        """Effective feedback up to `cut`, joined point-in-time with its prediction; without one it is left out."""
        feedback = self.effective_feedback(cut)
        if not feedback.num_rows:
            return []
        frame = feedback.select(
            ["feedback_id", "prediction_id", "kind", "value", "user", "event_timestamp"]
        ).to_pandas()
        features = [f"predictions:{name}" for name in JOINED]
        joined = self._store.get_historical_features(entity_df=frame, features=features).to_arrow()
        rows = sorted(joined.to_pylist(), key=lambda row: row["feedback_id"])
        return [
            FeedbackRow(
                feedback_id=row["feedback_id"],
                prediction_id=row["prediction_id"],
                kind=row["kind"],
                value=json.loads(row["value"]),
                user=row["user"],
                time=row["event_timestamp"],
                text=row["text"],
                predicted_label=row["predicted_label"],
                model_version=row["model_version"],
                metadata=json.loads(row["metadata"] or "{}"),
            )
            for row in rows
            if row["text"] is not None
        ]

    def count_labelled_since(self, cut: dict[str, int]) -> int:
        """Distinct effective labelled feedback stored beyond `cut`. Cheap while nothing was stored."""
        version = self.log.version("feedback")
        if self._counted and self._counted[:2] == (version, cut):
            return self._counted[2]
        kinds = self.effective_feedback(after=cut)["kind"].to_pylist()
        count = sum(kind in LABELLED for kind in kinds)
        self._counted = (version, dict(cut), count)
        return count

    def stored_events(self) -> dict[str, int]:
        """Distinct predictions and feedback, read back through Feast."""
        return {name: len(set(self._all(name)[key].to_pylist())) for name, key in self._entities.items()}

    def _all(self, name: str) -> pa.Table:
        view = self._store.get_feature_view(name)
        key = self._entities[name]
        features = [field.name for field in view.features]
        job = self._store._get_provider().offline_store.pull_all_from_table_or_query(
            config=self._store.config,
            data_source=view.batch_source,
            join_key_columns=[key],
            feature_name_columns=features,
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
            start_date=datetime(1970, 1, 1, tzinfo=UTC),
            end_date=datetime(9999, 1, 1, tzinfo=UTC),
        )
        return job.to_arrow()


def _online_row(prediction: PredictionMade) -> tuple[Any, dict[str, Any], datetime, None]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    data = prediction.data
    known = {"model_version": data.model_version, "predicted_label": data.label, "user": data.user}
    key = EntityKey(join_keys=["prediction_id"], entity_values=[Value(string_val=data.prediction_id)])
    values = {name: Value() if value is None else Value(string_val=value) for name, value in known.items()}
    return key, values, prediction.time, None
