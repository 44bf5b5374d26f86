"""The feature store: look-ups by prediction online, labelled feedback as of a cut offline.

Turns the event log, through Feast, into what the consumer, the scheduler, rounds and the demo ask for. It is the only
user of Feast. It deliberately does not decide what feedback means for training: that is pipelines/dataset.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipelines.feature_store import effective_feedback as feedback_rules
from pipelines.feature_store.event_log import SCHEMAS, EventLog
from schemas.events import PredictionMade
from schemas.settings import Settings
from schemas.targets import LABELLED
from serving.file_lock import locked

# Class paths in the feature_store.yaml of projects that were made before these modules moved.
MOVED = {
    "pipelines.offline_store.EventLogOfflineStore": "pipelines.feature_store.offline_store.EventLogOfflineStore",
    "pipelines.online_store.EventTimeOnlineStore": "pipelines.feature_store.online_store.EventTimeOnlineStore",
}
ONLINE = ("model_version", "predicted_label", "user")
JOINED = ("text", "predicted_label", "model_version", "metadata", "audit")
# How much later than its feedback a prediction may seem: it is found by its id, so that clocks which were set back meanwhile
# must not part the two.
CLOCK_SKEW = timedelta(days=3653)
# Feast reads through ibis, whose default connection is one for the process and refuses a second call.
_OFFLINE = threading.Lock()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    audit: bool = False


def default_feature_store_yaml(project: str) -> str:
    """Feast's configuration as `ratchet init` writes it; paths are relative to its folder."""
    return f"""# Feast's own configuration. In production: online_store type redis with a connection_string, registry on Postgres.
project: "{project.replace("-", "_")}"
provider: local
registry:
  registry_type: sql
  path: sqlite:///state/feast_registry.db
  cache_mode: thread
  cache_ttl_seconds: 600
offline_store:
  type: pipelines.feature_store.offline_store.EventLogOfflineStore
online_store:
  type: pipelines.feature_store.online_store.EventTimeOnlineStore
  path: state/online.db
entity_key_serialization_version: 3
"""


class FeatureStore:
    """One project's features. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Open the store and apply the definitions. Raises OSError when it cannot be opened."""
        from feast import FeatureStore as Feast
        from feast import RepoConfig

        from pipelines.feature_store.definitions import ENTITIES, definitions

        config = yaml.safe_load(settings.path(settings.feature_store.config).read_text(encoding="utf-8-sig"))
        for store in ("offline_store", "online_store"):
            if isinstance(config.get(store), dict):
                config[store]["type"] = MOVED.get(config[store].get("type"), config[store].get("type"))
        root = settings.root.absolute()
        settings.path("state").mkdir(parents=True, exist_ok=True)
        config["registry"]["path"] = settings.database_url(config["registry"]["path"])
        if isinstance(config["online_store"], dict) and "path" in config["online_store"]:
            config["online_store"]["path"] = str(settings.path(config["online_store"]["path"]))
        self._location = settings.location(settings.feature_store.event_log)
        self.log = EventLog(self._location)
        self._store = Feast(config=RepoConfig(repo_path=root, **config))
        self._entities = ENTITIES
        self._views: dict[str, Any] = {}
        # Several processes open the store at once, and Feast's `apply` is no transaction.
        with locked(settings.path("state/feast.lock")):
            self._apply(definitions(self._location))
        self._task = settings.model.task
        self._counted: tuple[tuple[object, ...], int] | None = None

    def write_online(self, predictions: Sequence[PredictionMade]) -> None:
        """Make predictions known to `look_up`."""
        if predictions:
            self._write("predictions", [_online_row(p) for p in predictions])

    def look_up(self, prediction_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """What is known online of predictions: model_version, predicted_label, user; unknown ids are left out."""
        return {key: values for key, _, values in self._read("predictions", prediction_ids, ONLINE)}

    def forget_predictions(self, before: datetime) -> int:
        """Delete predictions made before a time from the SQLite online store, for a second at most; return the rows.

        The event log keeps them. Redis forgets by itself, if feature_store.yaml sets key_ttl_seconds.
        """
        online = self._store._get_provider().online_store
        forget = getattr(online, "forget", None)
        return int(forget(self._store.config, self._view("predictions"), before)) if forget else 0

    def write_live(self, states: Mapping[str, str], at: datetime) -> None:
        """Keep the live counts of feedback (JSON) by '<topic_id>/<partition>'; a later `at` wins."""
        rows = [(_key("place", place), {"counts": _value(state)}, at, None) for place, state in states.items()]
        if rows:
            self._write("live_feedback", rows)

    def forget_online(self, prediction_ids: Sequence[str], at: datetime) -> None:
        """Overwrite what is known online of predictions with nothing; what was known before `at` does not come back."""
        empty = {name: _value(None) for name in ONLINE}
        if prediction_ids:
            self._write("predictions", [(_key("prediction_id", key), empty, at, None) for key in prediction_ids])

    def live(self, places: Sequence[str]) -> dict[str, str]:
        """The live counts that consumers keep; places without any are left out."""
        return {place: found["counts"] for place, _, found in self._read("live_feedback", places, ("counts",))}

    def live_times(self, places: Iterable[str]) -> dict[str, datetime]:
        """When the live counts of places were last written, in aware UTC; places without any are left out."""
        return {place: at for place, at, _ in self._read("live_feedback", sorted(places), ("counts",))}

    def current_cut(self) -> dict[str, int]:
        """Last stored offset of feedback, by '<topic_id>/<partition>'."""
        return self.log.positions("feedback")

    def effective_feedback(
        self, cut: Mapping[str, int] | None = None, *, bound: Mapping[str, int] | None = None
    ) -> pa.Table:
        """Effective feedback as of `cut` (unset: as of now), read through Feast, in order of feedback_id.

        Columns of the feedback table, and `beyond`: stored after `bound`.
        """
        return feedback_rules.effective(self._all("feedback"), cut, bound)

    def labelled_feedback(self, cut: Mapping[str, int] | None = None) -> list[FeedbackRow]:
        """Effective feedback up to `cut`, joined point-in-time with its prediction; without one it is left out."""
        joined = self.with_predictions(self.effective_feedback(cut))
        joined = joined.filter(pc.is_valid(joined["text"]))
        columns = [joined[name].to_pylist() for name in ("feedback_id", "prediction_id", "kind", "user", *JOINED)]
        values = [orjson.loads(value) for value in joined["value"].to_pylist()]
        times = pc.cast(joined["event_timestamp"], pa.int64()).to_pylist()
        return [
            FeedbackRow(
                feedback_id=feedback_id,
                prediction_id=prediction_id,
                kind=kind,
                value=value,
                user=user,
                time=EPOCH + timedelta(microseconds=time),
                text=text,
                predicted_label=label,
                model_version=version,
                metadata=orjson.loads(metadata or "{}"),
                audit=bool(audit),
            )
            for value, time, feedback_id, prediction_id, kind, user, text, label, version, metadata, audit in zip(
                values, times, *columns, strict=True
            )
        ]

    def with_predictions(self, feedback: pa.Table) -> pa.Table:
        """Rows of feedback, in order of feedback_id, with text, predicted_label, model_version and metadata of their prediction.

        Feast's point-in-time join, as of when the feedback was stored or said, whichever is later: a clock that is
        behind does not part it from the prediction that it names. Nulls: the prediction is not in the log.
        """
        if not feedback.num_rows:
            return feedback_rules.joined(feedback, None, JOINED)
        said, stored = feedback["event_timestamp"], feedback["created_timestamp"]
        as_of = pc.if_else(pc.greater(said, stored), said, stored)
        frame = feedback.select(["feedback_id", "prediction_id"]).to_pandas()
        frame["event_timestamp"] = pc.add(as_of, pa.scalar(CLOCK_SKEW)).to_pandas()
        features = [f"predictions:{name}" for name in JOINED]
        with _OFFLINE:
            found = self._store.get_historical_features(entity_df=frame, features=features).to_arrow()
        return feedback_rules.joined(feedback, found, JOINED)

    def orphans(self, after: Mapping[str, int], until: datetime, most: int) -> pa.Table:
        """Feedback without prediction, stored until `until`, beyond the offsets of `after`, by place."""
        return feedback_rules.orphans(self._all("feedback"), self._all("predictions", ()), after, until, most)

    def counted(self, feedback: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Of effective feedback: how much by place, model version and whether it agreed; and the rows without prediction."""
        known = self._all("predictions", ("model_version", "predicted_label"))
        return feedback_rules.counted(feedback, known), feedback_rules.unknown(feedback, known)

    def expired_until(self, place: str) -> int:
        """The offset in a place up to which orphans are dead letters; or -1."""
        return self.log.position("feedback", f"orphans/{place}")

    def mark_expired(self, marks: Mapping[str, int]) -> None:
        """Remember that orphans up to these offsets, by place, are dead letters now."""
        marked = {f"orphans/{place}": offset for place, offset in marks.items()}
        self.log.append("feedback", SCHEMAS["feedback"].empty_table(), marked)

    def log_rows(self, name: str) -> pa.Table:
        """Every stored row of "predictions" or "feedback"."""
        return self._all(name)

    def export(self) -> pa.Table:
        """Every effective feedback with its prediction's columns, orphans included until they expire."""
        rows = self.with_predictions(self.effective_feedback())
        marks = {place: at for place in self.log.positions("feedback") if (at := self.expired_until(place)) >= 0}
        return feedback_rules.unexpired(rows, marks)

    def recent_predictions(self, limit: int) -> list[tuple[str, str]]:
        """Text and predicted label of the newest `limit` predictions, the newest first."""
        stored = self._all("predictions", ("text", "predicted_label"))
        order = [("event_timestamp", "descending"), ("prediction_id", "ascending")]
        newest = stored.take(pc.select_k_unstable(stored, limit, order))
        return list(zip(newest["text"].to_pylist(), newest["predicted_label"].to_pylist(), strict=True))

    def count_labelled_since(self, cut: Mapping[str, int]) -> int:
        """Effective feedback stored beyond `cut` that a round could train on. Cheap while nothing was stored.

        Feedback whose prediction is not stored (yet), and a thumbs-down about what is no label, train nothing.
        """
        stored, waiting = (self.log.version("feedback"), dict(cut)), (self.log.version("predictions"),)
        if self._counted is None or self._counted[0] not in (stored, stored + waiting):
            feedback = self.effective_feedback(bound=cut)
            known, unknown = feedback_rules.trainable(
                feedback, self._all("predictions", ()), rejections=self._task in LABELLED
            )
            # While some of it waits for its prediction, the count is good until more predictions are stored.
            self._counted = (stored + waiting if unknown else stored, known)
        return self._counted[1]

    def stored_events(self) -> dict[str, int]:
        """Distinct predictions and feedback, read back through Feast."""
        feedback = self._all("feedback", ("prediction_id", "user")).select(["prediction_id", "user", "feedback_id"])
        predictions = pc.count_distinct(self._all("predictions", ())["prediction_id"]).as_py()
        return {
            "predictions": int(predictions),
            "feedback": feedback.group_by(feedback.column_names).aggregate([]).num_rows,
        }

    def _apply(self, wanted: Sequence[Any]) -> None:
        """Tell Feast's registry what it does not know yet, or knows differently."""
        views = {thing.name: thing for thing in wanted if hasattr(thing, "batch_source")}
        known = {view.name: view for view in self._store.list_feature_views()}
        if known.keys() != views.keys() or any(
            known[n].source != v.source or known[n].schema != v.schema for n, v in views.items()
        ):
            self._store.apply(list(wanted))
            self._store.refresh_registry()

    def _write(self, view: str, rows: list[Any]) -> None:
        """Feast's bulk path: validation and conversion of a DataFrame would cost more than all the rest."""
        self._store._get_provider().online_write_batch(self._store.config, self._view(view), rows, None)

    def _read(
        self, view: str, keys: Sequence[str], features: Sequence[str]
    ) -> list[tuple[str, datetime, dict[str, Any]]]:
        """Key, time and features of what is known, through Feast's bulk path; the first feature is never null."""
        if not keys:
            return []
        entities = [_key(self._view(view).entity_columns[0].name, key) for key in keys]
        answers = self._store._get_provider().online_read(
            self._store.config, self._view(view), entities, list(features)
        )
        return [
            (key, at, {name: values[name].string_val if values[name].HasField("val") else None for name in features})
            for key, (at, values) in zip(keys, answers, strict=True)
            if values and values[features[0]].HasField("val")  # Redis answers unknown keys with empty values
        ]

    def _view(self, name: str) -> Any:
        if name not in self._views:
            self._views[name] = self._store.get_feature_view(name)
        return self._views[name]

    def _all(self, name: str, features: Sequence[str] | None = None) -> pa.Table:
        view = self._view(name)
        key = self._entities[name]
        if features is None:
            features = [field.name for field in view.features]
        with _OFFLINE:
            job = self._store._get_provider().offline_store.pull_all_from_table_or_query(
                config=self._store.config,
                data_source=view.batch_source,
                join_key_columns=[key],
                feature_name_columns=list(features),
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
                start_date=EPOCH,
                end_date=datetime(9999, 1, 1, tzinfo=UTC),
            )
            return job.to_arrow()


def _key(name: str, value: str) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    return EntityKey(join_keys=[name], entity_values=[_value(value)])


def _value(value: str | None) -> Any:
    from feast.protos.feast.types.Value_pb2 import Value

    return Value() if value is None else Value(string_val=value)


def _online_row(prediction: PredictionMade) -> tuple[Any, dict[str, Any], datetime, None]:
    data = prediction.data
    known = {"model_version": data.model_version, "predicted_label": data.label, "user": data.user}
    values = {name: _value(value) for name, value in known.items()}
    return _key("prediction_id", data.prediction_id), values, prediction.time, None
