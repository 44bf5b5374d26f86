"""Unchallenged predictions: answers that nobody corrected, rated or commented on.

Turns the stored predictions and feedback into rows that store.py offers to a round; replayed.py of the dataset decides how
many.
"""

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

COLUMNS = ("text", "predicted_label", "confidence", "audit", "model_version", "metadata")


def unchallenged(predictions: pa.Table, answered: pa.Table, version: str, until: datetime, most: int) -> pa.Table:
    """Return at most `most` predictions of a version without feedback, in order of prediction_id.

    Those in the audit sample are left out, because people's labels of them judge. Of the others, which have to be stored by
    `until`, the surer half counts: a text with a label that is new to the model is seldom among them.

    Args:
        predictions: every prediction, with COLUMNS.
        answered: rows of feedback; predictions that one of them is about are left out.
        version: the model version whose predictions are wanted.
        until: time of the round's claim, so that a resumed round gets the same rows.
        most: number of rows, chosen by prediction_id, whose order is that of time.

    """
    of_version = pc.equal(predictions["model_version"], version)
    stored = pc.less_equal(predictions["created_timestamp"], pa.scalar(until, predictions["created_timestamp"].type))
    silent = pc.invert(pc.is_in(predictions["prediction_id"], _values(answered["prediction_id"])))
    fair = pc.invert(pc.fill_null(predictions["audit"], False))
    rows = predictions.filter(pc.and_(pc.and_(of_version, stored), pc.and_(silent, fair)))
    if not rows.num_rows or not most:
        return rows.slice(0, 0)
    middle = pc.quantile(rows["confidence"], 0.5)[0]
    surer = rows.filter(pc.greater_equal(rows["confidence"], middle)).sort_by([("prediction_id", "descending")])
    return surer.slice(0, most).sort_by([("prediction_id", "ascending")])


def _values(column: pa.ChunkedArray | Sequence[str]) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else pa.array(column, pa.string())
