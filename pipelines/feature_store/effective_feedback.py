"""What counts as feedback: the rules, as SQL over the log's tables.

Turns Arrow tables of the log into effective feedback, orphans and counts. feature_store/store.py reads the tables
through Feast and calls it. It deliberately opens no store, and does not decide what feedback means for training.

A feedback_id is its author's own: a feedback is known by prediction, author and feedback_id, and of its copies the
first stored counts. Effective feedback is that, minus what its author withdrew, and per author, prediction and kind
only the last by event time. Everybody who gave no name is one author: whoever holds a prediction's token has one vote
on it, however often it is used. Comments are for people and are no votes: those of nobody are told apart by
feedback_id. An orphan is feedback whose prediction is not in the log (yet).
"""

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

Vote = tuple[str, str, str | None]

# A row is within a cut if the cut covers its offset; a topic that a cut does not name is newer than the cut.
_EFFECTIVE = """
WITH within AS (
  SELECT f.* FROM stored f LEFT JOIN cut c ON c.place = f.topic_id || '/' || f.partition
  WHERE $everything OR f."offset" <= coalesce(c.last, -1)
), once AS (
  SELECT * FROM within
  QUALIFY row_number() OVER (
    PARTITION BY prediction_id, "user", feedback_id ORDER BY created_timestamp, topic_id, "partition", "offset") = 1
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
  PARTITION BY prediction_id, kind, coalesce('u' || "user", CASE kind WHEN 'comment' THEN 'f' || feedback_id END)
  ORDER BY event_timestamp DESC, created_timestamp DESC, "offset" DESC, feedback_id DESC) = 1
ORDER BY feedback_id, prediction_id, "user"
"""

# Offsets, not times, are what has been looked at: the rows of a batch were stored at one time.
_ORPHANS = """
WITH mine AS (
  SELECT f.*, s.place, s.last FROM stored f JOIN span s ON s.place = f.topic_id || '/' || f.partition
), old AS (
  SELECT * FROM mine
  QUALIFY "offset" < coalesce(min("offset") FILTER (created_timestamp > $until) OVER (PARTITION BY place), 2**62)
)
SELECT * EXCLUDE (last) FROM old f WHERE "offset" > last AND kind <> 'retract'
AND NOT EXISTS (SELECT 1 FROM predictions p WHERE p.prediction_id = f.prediction_id)
ORDER BY place, "offset" LIMIT $most
"""

_COUNTED = """
WITH known AS (
  SELECT prediction_id, any_value(model_version) AS model_version, any_value(predicted_label) AS predicted_label
  FROM predictions GROUP BY 1
)
SELECT topic_id || '/' || "partition" AS place, model_version, CASE
  WHEN kind = 'rating' THEN value = '"up"'
  WHEN kind <> 'correction' THEN NULL
  WHEN NOT json_valid(value) THEN false
  WHEN value ->> '$' = predicted_label THEN true
  -- a list of labels is equal however it is spaced
  WHEN json_valid(predicted_label) THEN CAST(json(value) AS VARCHAR) = CAST(json(predicted_label) AS VARCHAR)
  ELSE false END AS agreed, count(*) AS n
FROM feedback f JOIN known USING (prediction_id) GROUP BY ALL
"""

# A thumbs-down says what an answer is not; where answers are no labels, nothing can be learnt from that.
_TRAINABLE = """
SELECT prediction_id, prediction_id IN (SELECT prediction_id FROM predictions) AS known
FROM feedback WHERE beyond AND (kind = 'correction' OR kind = 'rating' AND ($rejections OR value = '"up"'))
"""


def effective(stored: pa.Table, cut: Mapping[str, int] | None, bound: Mapping[str, int] | None) -> pa.Table:
    """Effective feedback as of `cut` (unset: all of it) in order of feedback_id; `beyond` marks rows after `bound`."""
    with duckdb.connect() as connection:
        connection.register("stored", stored)
        connection.register("cut", _places(cut or {}))
        connection.register("bound", _places(bound or {}))
        return connection.sql(_EFFECTIVE, params={"everything": cut is None}).to_arrow_table()


def joined(feedback: pa.Table, predictions: pa.Table | None, columns: Sequence[str]) -> pa.Table:
    """Rows of `feedback` in their order with `columns` of what was found, by both ids; nulls where nothing was."""
    if predictions is None:
        return functools.reduce(lambda t, c: t.append_column(c, pa.nulls(t.num_rows, pa.string())), columns, feedback)
    places = pc.index_in(_pairs(feedback), value_set=_pairs(predictions).combine_chunks())
    for column in columns:
        feedback = feedback.append_column(column, predictions[column].combine_chunks().take(places.combine_chunks()))
    return feedback


def unexpired(rows: pa.Table, marks: Mapping[str, int]) -> pa.Table:
    """Rows of `joined` without the orphans up to their place's mark (an offset): those are dead letters."""
    query = """
    SELECT rows.* FROM rows LEFT JOIN marks m ON m.place = topic_id || '/' || "partition"
    WHERE text IS NOT NULL OR "offset" > coalesce(m.last, -1) ORDER BY feedback_id, prediction_id, "user"
    """
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        connection.register("marks", _places(marks))
        return connection.sql(query).to_arrow_table()


def orphans(stored: pa.Table, predictions: pa.Table, after: Mapping[str, int], until: datetime, most: int) -> pa.Table:
    """Feedback without prediction that was stored not later than `until`, beyond the offsets of `after` by place.

    In order of place and offset, `most` rows at most; places that `after` does not name are left out.
    """
    with duckdb.connect() as connection:
        connection.register("stored", stored)
        connection.register("predictions", predictions)
        connection.register("span", _places(after))
        return connection.sql(_ORPHANS, params={"until": until, "most": most}).to_arrow_table()


def counted(feedback: pa.Table, predictions: pa.Table) -> pa.Table:
    """Count effective feedback by place, model version and whether it agreed (null: it does not say)."""
    with duckdb.connect() as connection:
        connection.register("feedback", feedback)
        connection.register("predictions", predictions)
        return connection.sql(_COUNTED).to_arrow_table()


def unknown(feedback: pa.Table, predictions: pa.Table) -> pa.Table:
    """Return the rows of `feedback` whose prediction is not stored."""
    return feedback.filter(
        pc.invert(pc.is_in(feedback["prediction_id"], predictions["prediction_id"].combine_chunks()))
    )


def newest_votes(feedback: pa.Table, most: int) -> list[Vote]:
    """Return the votes of the feedback that was stored last, the newest last."""
    ordered = feedback.sort_by([("created_timestamp", "ascending"), ("offset", "ascending")])
    return [vote_of(row) for row in ordered.slice(max(0, ordered.num_rows - most)).to_pylist()]


def trainable(feedback: pa.Table, predictions: pa.Table, *, rejections: bool) -> tuple[int, int]:
    """Count effective feedback beyond its bound that a round could train on: (its prediction is stored, it is not yet).

    `rejections`: whether a thumbs-down trains.
    """
    with duckdb.connect() as connection:
        connection.register("feedback", feedback)
        connection.register("predictions", predictions)
        query = f"SELECT count(*) FILTER (known), count(*) FILTER (NOT known) FROM ({_TRAINABLE})"  # noqa: S608
        found = connection.execute(query, {"rejections": rejections}).fetchone()
    return (int(found[0]), int(found[1])) if found else (0, 0)


def vote_of(row: Mapping[str, Any]) -> Vote:
    """Return what a feedback has in common with those that it replaces: prediction, kind and author."""
    author = row["user"] or (row["feedback_id"] if row["kind"] == "comment" else None)
    return row["prediction_id"], row["kind"], author


def _pairs(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["prediction_id"], rows["feedback_id"], "/")


def _places(by_place: Mapping[str, int]) -> pa.Table:
    schema = pa.schema([("place", pa.string()), ("last", pa.int64())])
    return pa.table({"place": list(by_place), "last": list(by_place.values())}, schema=schema)
