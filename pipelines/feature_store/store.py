"""The feature store: predictions by id online, effective feedback as of a cut offline.

The consumer, the scheduler, rounds and the demo query it. It reads the event log through Feast (feast_views.py).
pipelines/dataset decides what feedback means for training.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.feature_store import effective_feedback as feedback_rules
from pipelines.feature_store.event_log import EPOCH, SCHEMAS, EventLog
from pipelines.feature_store.feast_views import FeastViews, default_feature_store_yaml, read_config
from pipelines.feature_store.unchallenged import COLUMNS, unchallenged
from schemas.events import PredictionMade
from schemas.settings import Settings
from schemas.targets import LABELLED

__all__ = ["UNCHALLENGED", "FeatureStore", "FeedbackRow", "default_feature_store_yaml"]
UNCHALLENGED = "unchallenged"  # kind of a prediction that nobody answered
ONLINE = ("model_version", "predicted_label", "user")
JOINED = ("text", "predicted_label", "model_version", "metadata")
# A prediction may seem this much later than its feedback. The two are joined by id, so a clock that was set back must not
# separate them.
CLOCK_SKEW = timedelta(days=3653)


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


class FeatureStore:
    """The event log and Feast over it, one object a process. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Open the store and apply the definitions. Raises OSError if it cannot be opened."""
        config = read_config(settings)
        self.log = EventLog(settings.location(settings.feature_store.event_log))
        self._views = FeastViews(config, settings)
        self._task = settings.model.task
        self._trainable: tuple[tuple[object, ...], int] | None = None

    def write_online(self, predictions: Sequence[PredictionMade]) -> None:
        """Write predictions online, for `look_up`."""
        rows = [(p.data.prediction_id, _online_features(p), p.time) for p in predictions]
        if rows:
            self._views.write("predictions", rows)

    def look_up(self, prediction_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return id -> model_version, predicted_label and user of the predictions that are online."""
        return {key: values for key, _, values in self._views.read("predictions", prediction_ids, ONLINE)}

    def forget_predictions(self, before: datetime) -> int:
        """Delete predictions made before a time from the SQLite online store, for a second at most; return their number.

        The event log keeps them. Redis expires them itself, if feature_store.yaml sets key_ttl_seconds.
        """
        return self._views.forget("predictions", before)

    def write_live(self, states: Mapping[str, str], at: datetime) -> None:
        """Write the live counts of feedback (JSON) by '<topic_id>/<partition>'; a later `at` wins."""
        rows = [(topic_partition, {"counts": state}, at) for topic_partition, state in states.items()]
        if rows:
            self._views.write("live_feedback", rows)

    def forget_online(self, prediction_ids: Sequence[str], at: datetime) -> None:
        """Overwrite the online values of predictions with nulls; a replay of events before `at` does not restore them."""
        if prediction_ids:
            self._views.write("predictions", [(key, dict.fromkeys(ONLINE), at) for key in prediction_ids])

    def live(self, topic_partitions: Sequence[str]) -> dict[str, str]:
        """Return the live counts (JSON) of the topic-partitions that have any."""
        rows = self._views.read("live_feedback", topic_partitions, ("counts",))
        return {topic_partition: features["counts"] for topic_partition, _, features in rows}

    def live_times(self, topic_partitions: Iterable[str]) -> dict[str, datetime]:
        """Return when the live counts of each topic-partition were last written, in aware UTC; those without are omitted."""
        rows = self._views.read("live_feedback", sorted(topic_partitions), ("counts",))
        return {topic_partition: at for topic_partition, at, _ in rows}

    def current_cut(self) -> dict[str, int]:
        """Return the last stored offset of feedback, by '<topic_id>/<partition>'."""
        return self.log.positions("feedback")

    def effective_feedback(
        self, cut: Mapping[str, int] | None = None, *, bound: Mapping[str, int] | None = None
    ) -> pa.Table:
        """Return the effective feedback as of `cut` (None: as of now), in order of feedback_id.

        The columns are those of the feedback table, and `beyond`: whether the row is beyond `bound`.
        """
        return feedback_rules.effective(self._views.stored("feedback"), cut, bound)

    def labelled_feedback(self, cut: Mapping[str, int] | None = None) -> list[FeedbackRow]:
        """Return the effective feedback up to `cut`, joined with its predictions; feedback without one is left out."""
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
            )
            for value, time, feedback_id, prediction_id, kind, user, text, label, version, metadata in zip(
                values, times, *columns, strict=True
            )
        ]

    def with_predictions(self, feedback: pa.Table) -> pa.Table:
        """Return the rows of feedback with the columns JOINED of their prediction; nulls if the log does not have it.

        Feast's point-in-time join, as of the later of event and storage time plus CLOCK_SKEW, because clocks differ.
        """
        if not feedback.num_rows:
            return feedback_rules.joined(feedback, None, JOINED)
        given, stored = feedback["event_timestamp"], feedback["created_timestamp"]
        as_of = pc.if_else(pc.greater(given, stored), given, stored)
        frame = feedback.select(["feedback_id", "prediction_id"]).to_pandas()
        frame["event_timestamp"] = pc.add(as_of, pa.scalar(CLOCK_SKEW)).to_pandas()
        return feedback_rules.joined(feedback, self._views.as_of("predictions", frame, JOINED), JOINED)

    def orphans(self, after: Mapping[str, int], until: datetime, most: int) -> pa.Table:
        """Return feedback without prediction, stored until `until`, beyond the offset in `after` of its topic-partition."""
        predictions = self._views.stored("predictions", ())
        return feedback_rules.orphans(self._views.stored("feedback"), predictions, after, until, most)

    def counted(self, feedback: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return counts of effective feedback by topic-partition, version and agreement; and the rows without prediction."""
        known = self._views.stored("predictions", ("model_version", "predicted_label"))
        return feedback_rules.counted(feedback, known), feedback_rules.unknown(feedback, known)

    def expired_until(self, topic_partition: str) -> int:
        """Return the offset up to which a topic-partition's orphans are dead letters; -1 for none."""
        return self.log.position("feedback", f"orphans/{topic_partition}")

    def mark_expired(self, marks: Mapping[str, int]) -> None:
        """Store the offset, by topic-partition, up to which orphans are dead letters."""
        marked = {f"orphans/{topic_partition}": offset for topic_partition, offset in marks.items()}
        self.log.append("feedback", SCHEMAS["feedback"].empty_table(), marked)

    def log_rows(self, name: str) -> pa.Table:
        """Return every stored row of "predictions" or "feedback"."""
        return self._views.stored(name)

    def export(self) -> pa.Table:
        """Return all effective feedback with its prediction's columns; orphans are included until they expire."""
        rows = self.with_predictions(self.effective_feedback())
        marks = {key: at for key in self.log.positions("feedback") if (at := self.expired_until(key)) >= 0}
        return feedback_rules.unexpired(rows, marks)

    def recent_predictions(self, limit: int) -> list[tuple[str, str]]:
        """Return text and predicted label of the newest `limit` predictions, the newest first."""
        stored = self._views.stored("predictions", ("text", "predicted_label"))
        order = [("event_timestamp", "descending"), ("prediction_id", "ascending")]
        newest = stored.take(pc.select_k_unstable(stored, limit, order))
        return list(zip(newest["text"].to_pylist(), newest["predicted_label"].to_pylist(), strict=True))

    def new_texts(
        self, since: datetime, after: datetime | None, limit: int, *, audit: bool = False
    ) -> tuple[list[str], datetime | None]:
        """Return the distinct texts of the newest predictions made from `since` on, and up to which storage time they were read.

        Args:
            since: texts that were predicted before are left out, later repetitions too.
            after: only predictions stored later than this; None: all.
            limit: maximum number of texts; the newest are returned.
            audit: only predictions in the audit sample, whether or not their text was predicted before.

        """
        rows = self._views.stored("predictions", ("text", "audit"))
        made, stored = rows["event_timestamp"], rows["created_timestamp"]
        recent = pc.greater_equal(made, pa.scalar(since, made.type))
        fresh = recent if after is None else pc.and_(recent, pc.greater(stored, pa.scalar(after, stored.type)))
        if audit:
            fresh, earlier = pc.and_(fresh, pc.fill_null(rows["audit"], False)), set[str]()
        else:
            earlier = set(pc.unique(rows.filter(pc.invert(recent))["text"]).to_pylist())
        new = rows.filter(fresh).sort_by([("event_timestamp", "descending")])
        if not new.num_rows:
            return [], None
        texts = dict.fromkeys(text for text in new["text"].to_pylist() if text not in earlier)
        until: datetime = pc.max(new["created_timestamp"]).as_py()
        return list(texts)[:limit], until

    def unchallenged(self, version: str, until: datetime, most: int) -> list[FeedbackRow]:
        """Return predictions of a version without feedback as rows of the kind UNCHALLENGED; see unchallenged.py."""
        predictions = self._views.stored("predictions", COLUMNS)
        silent = unchallenged(predictions, self._views.stored("feedback", ("prediction_id",)), version, until, most)
        return [
            FeedbackRow(
                feedback_id=row["prediction_id"],
                prediction_id=row["prediction_id"],
                kind=UNCHALLENGED,
                value=None,
                user=None,
                time=row["event_timestamp"],
                text=row["text"],
                predicted_label=row["predicted_label"],
                model_version=version,
                metadata=orjson.loads(row["metadata"] or "{}"),
            )
            for row in silent.to_pylist()
        ]

    def count_labelled_since(self, cut: Mapping[str, int]) -> int:
        """Return the number of effective feedback beyond `cut` that a round can train on. Cheap while nothing is stored.

        Feedback without a stored prediction does not count, nor does a thumbs-down if the task has no labels.
        """
        stored, waiting = (self.log.version("feedback"), dict(cut)), (self.log.version("predictions"),)
        if self._trainable is None or self._trainable[0] not in (stored, stored + waiting):
            feedback = self.effective_feedback(bound=cut)
            known, unknown = feedback_rules.trainable(
                feedback, self._views.stored("predictions", ()), rejections=self._task in LABELLED
            )
            # If some of it waits for its prediction, the count is valid only until more predictions are stored.
            self._trainable = (stored + waiting if unknown else stored, known)
        return self._trainable[1]

    def stored_events(self) -> dict[str, int]:
        """Return the number of distinct predictions and feedback, read through Feast."""
        feedback = self._views.stored("feedback", ("prediction_id", "user")).select(
            ["prediction_id", "user", "feedback_id"]
        )
        predictions = pc.count_distinct(self._views.stored("predictions", ())["prediction_id"]).as_py()
        return {
            "predictions": int(predictions),
            "feedback": feedback.group_by(feedback.column_names).aggregate([]).num_rows,
        }


def _online_features(prediction: PredictionMade) -> dict[str, str | None]:
    data = prediction.data
    return {"model_version": data.model_version, "predicted_label": data.label, "user": data.user}
