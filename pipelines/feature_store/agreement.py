"""Compare one person's labels with the predictions and with other people's majority on the same texts.

Turns a pseudonym into counts. Which predictions have the same text is kept as hashes in memory, 24 bytes a prediction: a new
file of the log adds its rows, and a replaced or erased one makes the table anew. event_search.py calls it.
"""

from pipelines.feature_store.event_queries import EventQueries

_COLUMNS = """
SELECT hash(prediction_id) AS id, CASE WHEN text IS NOT NULL THEN hash(text) END AS text,
  hash(to_json(predicted_label)::VARCHAR) AS answer
"""
_ALL = "CREATE OR REPLACE TABLE texts AS " + _COLUMNS + "FROM predictions"
_ADDED = "INSERT INTO texts " + _COLUMNS + "FROM read_parquet($files, union_by_name = true)"
_AGREEMENT = """
WITH mine AS (SELECT hash(prediction_id) AS id, arg_max(value, event_timestamp) AS value FROM feedback
  WHERE "user" = $user AND kind = 'correction' GROUP BY prediction_id),
given AS MATERIALIZED (SELECT m.value, t.text, t.answer FROM mine m JOIN texts t USING (id)),
same AS MATERIALIZED (SELECT id, text FROM texts WHERE text IN (SELECT text FROM given)),
others AS (SELECT s.text, f.value, count(*) AS n FROM feedback f JOIN same s ON hash(f.prediction_id) = s.id
  WHERE f.kind = 'correction' AND f."user" IS DISTINCT FROM $user GROUP BY ALL),
majority AS (SELECT text, arg_max(value, n) AS value FROM others GROUP BY 1)
SELECT count(*) AS labelled, count(*) FILTER (WHERE hash(g.value) = g.answer) AS confirmed,
  count(m.value) AS shared, count(*) FILTER (WHERE m.value = g.value) AS agreed
FROM given g LEFT JOIN majority m USING (text)
"""


class Agreement:
    """The agreement of people in one event log."""

    def __init__(self, queries: EventQueries) -> None:
        self._queries = queries
        self._files: frozenset[str] = frozenset()

    def of(self, user: str) -> dict[str, int]:
        """Return how many labels a person gave, and how many agree with the prediction and with other people's majority.

        `shared` counts the labels on texts that others labelled too, `agreed` those equal to their majority.
        """
        with self._queries.lock:
            self._refresh()
            return {name: int(n) for name, n in self._queries.run(_AGREEMENT, {"user": user})[0].items()}

    def _refresh(self) -> None:
        """Bring the hashes up to the newest snapshot."""
        files = frozenset(self._queries.parquet_files("predictions"))
        if not self._files or not self._files <= files:
            self._queries.run(_ALL, {})
        elif added := files - self._files:
            self._queries.run(_ADDED, {"files": sorted(added)})
        self._files = files
