"""Search the event log for people: newest feedback, one person's record, traffic by minute, orphans.

Turns filters into rows by SQL over the log's newest snapshot, without Feast, so that a million rows answer in a moment. The
console calls it. Rows are those stored: effective_feedback.py decides which of them count in a round.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

from pipelines.feature_store import feedback_search
from pipelines.feature_store.agreement import Agreement
from pipelines.feature_store.event_queries import TABLES, EventQueries
from pipelines.feature_store.feedback_search import FeedbackPage, Wanted

KINDS = ("correction", "rating", "score", "comment", "retract")

_PREDICTIONS = """
SELECT prediction_id, any_value(text) AS text, any_value(predicted_label) AS predicted_label,
  any_value(model_version) AS model_version, any_value(confidence) AS confidence, any_value(metadata) AS metadata
FROM predictions WHERE prediction_id IN ({ids}) GROUP BY 1
"""
_ANSWERS = """
SELECT text, arg_max(predicted_label, event_timestamp) AS label FROM predictions
WHERE model_version = $version AND text IN (SELECT unnest($texts)) GROUP BY 1
"""
_TRAFFIC = """
SELECT CAST(floor((epoch($now) - epoch(event_timestamp)) / $step) AS INTEGER) AS ago, count(*) AS n
FROM {table} WHERE event_timestamp > $since AND event_timestamp <= $now GROUP BY 1
"""
_ANSWERED = "SELECT count(*) AS n FROM predictions WHERE model_version = $version"
_ANSWERS_OF = """
SELECT predicted_label AS answer, confidence FROM predictions WHERE model_version = $version
ORDER BY event_timestamp {order} LIMIT $limit
"""
_PEOPLE = """
SELECT "user", count(*) AS n, max(event_timestamp) AS last FROM feedback
WHERE "user" IS NOT NULL GROUP BY 1 ORDER BY n DESC LIMIT $limit
"""
_ORPHANS = """
SELECT f.feedback_id, f.prediction_id, f.kind, f.value, f."user", f.event_timestamp AS time
FROM feedback f WHERE f.kind <> 'retract' AND f.prediction_id NOT IN (SELECT prediction_id FROM predictions)
ORDER BY f.event_timestamp DESC LIMIT $limit
"""


class EventSearch:
    """Reads one event log. Thread-safe: one query at a time."""

    def __init__(self, location: str) -> None:
        """Open the log. Raises OSError."""
        self._queries = EventQueries(location)
        self._query = self._queries.run
        self._agreement = Agreement(self._queries)

    def version(self) -> tuple[int, int]:
        """Return the versions of both tables, which change whenever rows do."""
        with self._queries.lock:
            return self._queries.log.version("predictions"), self._queries.log.version("feedback")

    def positions(self) -> dict[str, int]:
        """Return the last stored offset of feedback by '<topic_id>/<partition>'."""
        with self._queries.lock:
            return self._queries.log.positions("feedback")

    def feedback(self, wanted: Wanted) -> FeedbackPage:
        """Return a page of feedback with its predictions' columns, newest first; nulls where the prediction is missing."""
        search = feedback_search.with_words if wanted.words else feedback_search.newest
        page = search(self._queries, wanted)
        return replace(page, rows=self._with_predictions(page.rows))

    def orphans(self, limit: int) -> list[dict[str, Any]]:
        """Return stored feedback whose prediction is not in the log, newest first."""
        return self._query(_ORPHANS, {"limit": limit})

    def predictions(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Return text, label, version, confidence and metadata of predictions by id; unknown ids are left out."""
        named = {f"id{n}": one for n, one in enumerate(dict.fromkeys(ids))}  # constants, which statistics can exclude
        query = _PREDICTIONS.format(ids=", ".join(f"${name}" for name in named))
        return {row["prediction_id"]: row for row in (self._query(query, named) if ids else [])}

    def answers(self, texts: list[str], model_version: str) -> dict[str, str]:
        """Return text -> what a version answered last, for those of the texts that it has answered."""
        rows = self._query(_ANSWERS, {"texts": texts, "version": model_version}) if texts else []
        return {row["text"]: row["label"] for row in rows}

    def answered(self, model_version: str) -> int:
        """Return how many predictions a version has made."""
        return int(self._query(_ANSWERED, {"version": model_version})[0]["n"])

    def answers_of(self, model_version: str, limit: int, *, newest: bool) -> list[tuple[str | None, float | None]]:
        """Return answer and confidence of a version's newest predictions, or of its first ones."""
        query = _ANSWERS_OF.format(order="DESC" if newest else "ASC")
        rows = self._query(query, {"version": model_version, "limit": limit})
        return [(row["answer"], row["confidence"]) for row in rows]

    def agreement(self, user: str) -> dict[str, int]:
        """Return the counts of `Agreement.of` for a person."""
        return self._agreement.of(user)

    def people(self, limit: int) -> list[dict[str, Any]]:
        """Return the pseudonyms with the most feedback, their number of rows and last time."""
        return self._query(_PEOPLE, {"limit": limit})

    def traffic(self, table: str, now: datetime, since: datetime, step_s: float) -> dict[int, int]:
        """Return the number of rows by how many steps ago they happened, between two times."""
        if table not in TABLES:
            raise ValueError(f"table: expected predictions or feedback, got {table!r}")
        rows = self._query(_TRAFFIC.format(table=table), {"now": now, "since": since, "step": step_s})
        return {int(row["ago"]): int(row["n"]) for row in rows}

    def _with_predictions(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        known = self.predictions([row["prediction_id"] for row in rows])
        missing = dict.fromkeys(("text", "predicted_label", "model_version", "confidence", "metadata"))
        return [{**missing, **known.get(row["prediction_id"], {}), **row} for row in rows]
