"""Select effective feedback, orphans and counts from the log's tables, in SQL.

Feedback is identified by prediction, author and feedback_id; of several copies the first stored counts. Effective feedback
omits what its author withdrew, and has only the last by event time for each author, prediction and kind. All anonymous
feedback has one author, so a prediction's token gives one vote, however often it is used. Comments are no votes: anonymous
ones are distinguished by feedback_id. An orphan is feedback whose prediction is not in the log (yet).

store.py reads the tables and calls these functions.
"""

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

Vote = tuple[str, str, str | None]

# A row is in a cut if its offset is covered; a topic-partition that is not in the cut is newer than the cut.
_EFFECTIVE = """
WITH within AS (
  SELECT f.* FROM stored f LEFT JOIN cut c ON c.topic_partition = f.topic_id || '/' || f.partition
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
FROM once f LEFT JOIN bound b ON b.topic_partition = f.topic_id || '/' || f.partition
WHERE kind <> 'retract' AND NOT EXISTS (
  SELECT 1 FROM withdrawn w WHERE w.feedback_id = f.feedback_id AND w.prediction_id = f.prediction_id
  AND w."user" IS NOT DISTINCT FROM f."user")
QUALIFY row_number() OVER (
  PARTITION BY prediction_id, kind, coalesce('u' || "user", CASE kind WHEN 'comment' THEN 'f' || feedback_id END)
  ORDER BY event_timestamp DESC, created_timestamp DESC, "offset" DESC, feedback_id DESC) = 1
ORDER BY feedback_id, prediction_id, "user"
"""

# Progress is by offset: all rows of a batch have the same storage time.
_ORPHANS = """
WITH assigned AS (
  SELECT f.*, s.topic_partition, s.last FROM stored f JOIN span s ON s.topic_partition = f.topic_id || '/' || f.partition
), old AS (
  SELECT * FROM assigned
  QUALIFY "offset" < coalesce(min("offset") FILTER (created_timestamp > $until) OVER (PARTITION BY topic_partition), 2**62)
)
SELECT * EXCLUDE (last) FROM old f WHERE "offset" > last AND kind <> 'retract'
AND NOT EXISTS (SELECT 1 FROM predictions p WHERE p.prediction_id = f.prediction_id)
ORDER BY topic_partition, "offset" LIMIT $most
"""

_COUNTED = """
WITH known AS (
  SELECT prediction_id, any_value(model_version) AS model_version, any_value(predicted_label) AS predicted_label
  FROM predictions GROUP BY 1
)
SELECT topic_id || '/' || "partition" AS topic_partition, model_version, CASE
  WHEN kind = 'rating' THEN value = '"up"'
  WHEN kind <> 'correction' THEN NULL
  WHEN NOT json_valid(value) THEN false
  WHEN value ->> '$' = predicted_label THEN true
  -- lists of labels are compared without white space
  WHEN json_valid(predicted_label) THEN CAST(json(value) AS VARCHAR) = CAST(json(predicted_label) AS VARCHAR)
  ELSE false END AS agreed, count(*) AS n
FROM feedback f JOIN known USING (prediction_id) GROUP BY ALL
"""

# A thumbs-down rejects the predicted label; for tasks without labels it gives nothing to train on.
_TRAINABLE = """
SELECT prediction_id, prediction_id IN (SELECT prediction_id FROM predictions) AS known
FROM feedback WHERE beyond AND (kind = 'correction' OR kind = 'rating' AND ($rejections OR value = '"up"'))
"""


def effective(stored: pa.Table, cut: Mapping[str, int] | None, bound: Mapping[str, int] | None) -> pa.Table:
    """Return effective feedback as of `cut` (None: all) in order of feedback_id; `beyond` marks rows after `bound`."""
    with duckdb.connect() as connection:
        connection.register("stored", stored)
        connection.register("cut", _offsets(cut or {}))
        connection.register("bound", _offsets(bound or {}))
        return connection.sql(_EFFECTIVE, params={"everything": cut is None}).to_arrow_table()


def joined(feedback: pa.Table, predictions: pa.Table | None, columns: Sequence[str]) -> pa.Table:
    """Return `feedback` in its order with `columns` of `predictions`, joined by both ids; nulls if there is no match."""
    if predictions is None:
        return functools.reduce(lambda t, c: t.append_column(c, pa.nulls(t.num_rows, pa.string())), columns, feedback)
    matches = pc.index_in(_pairs(feedback), value_set=_pairs(predictions).combine_chunks())
    for column in columns:
        feedback = feedback.append_column(column, predictions[column].combine_chunks().take(matches.combine_chunks()))
    return feedback


def unexpired(rows: pa.Table, marks: Mapping[str, int]) -> pa.Table:
    """Return rows of `joined` without the orphans up to the offset in `marks`: those are dead letters."""
    query = """
    SELECT rows.* FROM rows LEFT JOIN marks m ON m.topic_partition = topic_id || '/' || "partition"
    WHERE text IS NOT NULL OR "offset" > coalesce(m.last, -1) ORDER BY feedback_id, prediction_id, "user"
    """
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        connection.register("marks", _offsets(marks))
        return connection.sql(query).to_arrow_table()


def orphans(stored: pa.Table, predictions: pa.Table, after: Mapping[str, int], until: datetime, most: int) -> pa.Table:
    """Return feedback without prediction that was stored until `until`, beyond the offset in `after`.

    At most `most` rows, in order of topic-partition and offset; only topic-partitions in `after`.
    """
    with duckdb.connect() as connection:
        connection.register("stored", stored)
        connection.register("predictions", predictions)
        connection.register("span", _offsets(after))
        return connection.sql(_ORPHANS, params={"until": until, "most": most}).to_arrow_table()


def counted(feedback: pa.Table, predictions: pa.Table) -> pa.Table:
    """Count effective feedback by topic-partition, model version and agreement (null: of a kind without agreement)."""
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
    """Count effective feedback beyond its bound that a round can train on: (with, without a stored prediction).

    `rejections`: whether a thumbs-down trains.
    """
    with duckdb.connect() as connection:
        connection.register("feedback", feedback)
        connection.register("predictions", predictions)
        query = f"SELECT count(*) FILTER (known), count(*) FILTER (NOT known) FROM ({_TRAINABLE})"  # noqa: S608
        counts = connection.execute(query, {"rejections": rejections}).fetchone()
    return (int(counts[0]), int(counts[1])) if counts else (0, 0)


def vote_of(row: Mapping[str, Any]) -> Vote:
    """Return the prediction, kind and author of a feedback; a later one with the same three replaces it."""
    author = row["user"] or (row["feedback_id"] if row["kind"] == "comment" else None)
    return row["prediction_id"], row["kind"], author


def _pairs(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["prediction_id"], rows["feedback_id"], "/")


def _offsets(last: Mapping[str, int]) -> pa.Table:
    schema = pa.schema([("topic_partition", pa.string()), ("last", pa.int64())])
    return pa.table({"topic_partition": list(last), "last": list(last.values())}, schema=schema)
