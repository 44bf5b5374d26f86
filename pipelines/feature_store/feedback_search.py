"""Search stored feedback, newest first: filters, pages, and words looked for within bounded time.

Turns filters into a page of rows. Words stand in the texts of predictions, which cost most to read: they are looked for in
windows of time, from the newest back, until the page is full or the time is up. The reader may then search further back.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.feature_store.event_queries import EventQueries

# Words are looked for among about so many newest rows first, then among WINDOW_GROWTH times as many.
WINDOW = 100_000
WINDOW_GROWTH = 2
SEARCH_S = 0.2  # no further window is begun after it

_ROWS = """
SELECT f.feedback_id, f.prediction_id, f.kind, f.value, f."user", f.event_timestamp AS time FROM feedback f WHERE {where}
"""
_NEWEST = _ROWS + "ORDER BY f.event_timestamp DESC, f.feedback_id DESC LIMIT $limit"
_BEFORE = "f.event_timestamp <= $time AND (f.event_timestamp < $time OR f.feedback_id < $id)"
_WINDOW = "CREATE OR REPLACE TEMP TABLE in_window AS " + _ROWS
_BOUNDS = "SELECT min(prediction_id) AS low, max(prediction_id) AS high FROM in_window"
# Ids are UUIDv7, so that the bounds exclude row groups of other times.
_MATCHING = """
SELECT w.* FROM in_window w WHERE w.prediction_id IN (
  SELECT prediction_id FROM predictions WHERE prediction_id BETWEEN $low AND $high AND contains(lower(text), $words))
ORDER BY w.time DESC, w.feedback_id DESC LIMIT $limit
"""
_ROW_GROUPS = """
SELECT stats_min_value::TIMESTAMPTZ AS low, row_group_num_rows AS n FROM parquet_metadata($files)
WHERE path_in_schema = 'event_timestamp' ORDER BY stats_max_value::TIMESTAMPTZ DESC
"""


@dataclass(frozen=True)
class Cursor:
    """A position in the feedback, newest first. Rows after it are older, or have a smaller id at the same time."""

    time: datetime
    feedback_id: str

    def __str__(self) -> str:
        """Return the cursor for an address: microseconds since 1970, a dot, the id."""
        return f"{int(self.time.timestamp()) * 1_000_000 + self.time.microsecond}.{self.feedback_id}"

    @staticmethod
    def read(text: str) -> "Cursor | None":
        """Return the cursor that `str` wrote; None for any other text."""
        at, dot, feedback_id = text.partition(".")
        if not dot or not at.isascii() or not at.isdecimal() or len(at) > 16:
            return None
        seconds, micros = divmod(int(at), 1_000_000)
        return Cursor(datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros), feedback_id)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Filters of a search; empty ones let everything pass. `words` are looked for in the anonymised text, without case."""

    words: str = ""
    user: str = ""
    kind: str = ""
    label: str = ""
    since: datetime | None = None
    before: Cursor | None = None
    limit: int = 50


@dataclass(frozen=True)
class FeedbackPage:
    """A page of feedback, newest first. `older` is where the next page begins, None at the end.

    `is_cut`: the search stopped at `older` because its time was up.
    """

    rows: list[dict[str, Any]]
    older: Cursor | None
    is_cut: bool = False


def newest(queries: EventQueries, wanted: Wanted) -> FeedbackPage:
    """Return the newest feedback that passes the filters; `words` are not looked at."""
    where, values = _conditions(wanted, wanted.before, wanted.since)
    rows = queries.run(_NEWEST.format(where=where), {**values, "limit": wanted.limit + 1})
    page = rows[: wanted.limit]
    return FeedbackPage(page, _cursor(page[-1]) if len(rows) > wanted.limit else None)


def with_words(queries: EventQueries, wanted: Wanted) -> FeedbackPage:
    """Return the newest feedback that passes the filters and whose text holds the words, as far as SEARCH_S reaches."""
    began, before = time.monotonic(), wanted.before
    rows: list[dict[str, Any]] = []
    with queries.lock:
        for low in [*_windows(queries, wanted), None]:
            rows += _matching(queries, wanted, before, low or wanted.since, wanted.limit + 1 - len(rows))
            before = Cursor(low, "") if low else None
            if len(rows) > wanted.limit or time.monotonic() - began > SEARCH_S:
                break
    if len(rows) > wanted.limit:
        page = rows[: wanted.limit]
        return FeedbackPage(page, _cursor(page[-1]))
    return FeedbackPage(rows, before, is_cut=before is not None)


def _matching(
    queries: EventQueries, wanted: Wanted, before: Cursor | None, low: datetime | None, limit: int
) -> list[dict[str, Any]]:
    """Return the newest matching rows between two times."""
    where, values = _conditions(wanted, before, low)
    queries.run(_WINDOW.format(where=where), values)
    [bounds] = queries.run(_BOUNDS, {})
    if bounds["low"] is None:
        return []
    return queries.run(_MATCHING, {**bounds, "words": wanted.words.lower(), "limit": limit})


def _windows(queries: EventQueries, wanted: Wanted) -> list[datetime]:
    """Return the lower bounds of all windows but the last, the newest first, by the statistics of row groups."""
    start = wanted.before.time if wanted.before else datetime.max.replace(tzinfo=UTC)
    files = queries.parquet_files("feedback")
    groups = queries.run(_ROW_GROUPS, {"files": files}) if files else []
    bounds, size, seen, low = list[datetime](), WINDOW, 0, start
    for group in groups:
        if group["low"] is None or group["low"] >= start:  # without statistics, or newer
            continue
        low, seen = min(low, group["low"]), seen + group["n"]
        if wanted.since and low <= wanted.since:
            break
        if seen >= size and low < (bounds[-1] if bounds else start):
            bounds.append(low)
            size, seen = size * WINDOW_GROWTH, 0
    return bounds


def _conditions(wanted: Wanted, before: Cursor | None, since: datetime | None) -> tuple[str, dict[str, Any]]:
    """Return the SQL condition of every filter but the words, for rows after a cursor and not before `since`; its values."""
    conditions, values = ["true"], dict[str, Any]()
    for condition, name, value in (
        ('f."user" = $user', "user", wanted.user),
        ("f.kind = $kind", "kind", wanted.kind),
        ("f.value = to_json($label)::VARCHAR", "label", wanted.label),
        ("f.event_timestamp >= $since", "since", since),
    ):
        if value:
            conditions.append(condition)
            values[name] = value
    if before:
        conditions.append(_BEFORE)
        values |= {"time": before.time, "id": before.feedback_id}
    return " AND ".join(conditions), values


def _cursor(row: dict[str, Any]) -> Cursor:
    return Cursor(row["time"], row["feedback_id"])
