"""The search of stored feedback: pages meet without a gap, and words are found however the search was cut."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.feature_store import feedback_search
from pipelines.feature_store.event_log import SCHEMAS, EventLog
from pipelines.feature_store.event_search import EventSearch
from pipelines.feature_store.feedback_search import Cursor, FeedbackPage, Wanted

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
PER_FILE, FILES = 40, 4
WORDS = ("oven", "OVEN in June", "butter", "a goal")


def append(log: EventLog, start: int, n: int = PER_FILE) -> None:
    """Store predictions and feedback; three rows share each time, and every tenth comes late for its id."""
    numbers = range(start, start + n)
    times = [BEGIN + timedelta(minutes=k // 3 - (500 if k % 10 == 9 else 0)) for k in numbers]
    common = {
        "topic_id": ["t"] * n, "partition": [0] * n, "offset": list(numbers), "event_timestamp": times,
        "created_timestamp": times, "prediction_id": [f"{k:032x}" for k in numbers],
        "user": [f"u{k % 3}" for k in numbers],
    }  # fmt: skip
    predictions = {
        **common, "model_version": ["v"] * n, "generation": [1] * n, "text": [WORDS[k % len(WORDS)] for k in numbers],
        "predicted_label": ["x"] * n, "confidence": [0.5] * n, "probabilities": ["{}"] * n, "metadata": ["{}"] * n,
        "audit": [False] * n,
    }  # fmt: skip
    draw = random.Random(start)
    feedback = {
        **common, "feedback_id": [f"{draw.randrange(16**6):06x}-{k}" for k in numbers], "kind": ["correction"] * n,
        "value": ['"x"' if k % 5 < 3 else '"y"' for k in numbers],
    }  # fmt: skip
    log.append("predictions", pa.Table.from_pydict(predictions, schema=SCHEMAS["predictions"]))
    log.append("feedback", pa.Table.from_pydict(feedback, schema=SCHEMAS["feedback"]))


def filled(folder: Path) -> EventLog:
    """A log with FILES commits of PER_FILE rows."""
    log = EventLog(str(folder))
    for k in range(FILES):
        append(log, k * PER_FILE)
    return log


@pytest.fixture(scope="module", params=["log", "a[b] log"])  # DuckDB would read a pattern: such files go through Arrow
def search(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> EventSearch:
    folder = tmp_path_factory.mktemp("search") / request.param
    filled(folder)
    return EventSearch(str(folder))


def pages(search: EventSearch, **filters: object) -> list[FeedbackPage]:
    """Every page of a search, each from where the one before ended; the cursor passes through an address."""
    read, before = list[FeedbackPage](), None
    while not read or before:
        read.append(search.feedback(Wanted(before=before, limit=25, **filters)))  # type: ignore[arg-type]
        before = Cursor.read(str(read[-1].older)) if read[-1].older else None
        assert len(read) < 50
    return read


def stored(search: EventSearch) -> list[dict[str, object]]:
    """All feedback in one page, the newest first."""
    return search.feedback(Wanted(limit=10_000)).rows


def test_pages_meet_without_gap_or_repetition(search: EventSearch) -> None:
    rows = stored(search)
    assert len(rows) == PER_FILE * FILES
    assert rows == sorted(rows, key=lambda row: (row["time"], row["feedback_id"]), reverse=True)
    assert [row for page in pages(search) for row in page.rows] == rows
    mine = [row for row in rows if row["user"] == "u1"]
    assert [row for page in pages(search, user="u1") for row in page.rows] == mine
    since = BEGIN + timedelta(minutes=30)
    late = [row for row in rows if row["time"] >= since and row["value"] == '"y"']  # type: ignore[operator]
    assert [row for page in pages(search, since=since, label="y") for row in page.rows] == late


@pytest.mark.parametrize(("seconds", "window"), [(0.0, 10), (60.0, 60), (0.0, 100_000)])
def test_words_are_found_once_each_however_the_search_was_cut(
    search: EventSearch, monkeypatch: pytest.MonkeyPatch, seconds: float, window: int
) -> None:
    monkeypatch.setattr(feedback_search, "SEARCH_S", seconds)
    monkeypatch.setattr(feedback_search, "WINDOW", window)
    rows = stored(search)
    ovens = [row for row in rows if "oven" in str(row["text"]).lower()]
    assert [row for page in pages(search, words="Oven") for row in page.rows] == ovens
    mine = [row for row in ovens if row["user"] == "u1" and row["time"] >= BEGIN]  # type: ignore[operator]
    assert [row for page in pages(search, words="oven", user="u1", since=BEGIN) for row in page.rows] == mine
    absent = pages(search, words="nowhere")
    assert not any(page.rows for page in absent)
    assert all(page.is_cut for page in absent[:-1])
    assert not absent[-1].is_cut


def test_a_search_whose_time_is_up_says_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "log")
    monkeypatch.setattr(feedback_search, "SEARCH_S", 0.0)
    monkeypatch.setattr(feedback_search, "WINDOW", 10)
    page = EventSearch(str(tmp_path / "log")).feedback(Wanted(words="nowhere"))
    assert page.is_cut
    assert page.older
    assert page.older.time > BEGIN - timedelta(minutes=500)


def test_new_and_erased_rows_are_seen_at_once(tmp_path: Path) -> None:
    search = EventSearch(str(tmp_path / "log"))
    assert stored(search) == []
    assert search.agreement("u1")["labelled"] == 0
    log = filled(tmp_path / "log")
    assert len(stored(search)) == PER_FILE * FILES
    append(log, FILES * PER_FILE, 3)
    assert len(stored(search)) == PER_FILE * FILES + 3
    log.erase("feedback", "\"user\" = 'u1'")
    assert "u1" not in {row["user"] for row in stored(search)}


def test_a_persons_agreement_is_that_of_their_labels_counted_one_by_one(search: EventSearch) -> None:
    rows = stored(search)
    for user in ("u0", "u1", "nobody"):
        mine = [row for row in rows if row["user"] == user]
        others = Counter((row["text"], row["value"]) for row in rows if row["user"] != user)
        majority = {text: max('"x"', '"y"', key=lambda value: others[text, value]) for text in WORDS}
        clear = {text for text in WORDS if others[text, '"x"'] != others[text, '"y"']}
        counts = search.agreement(user)
        assert counts["labelled"] == counts["shared"] == len(mine)
        assert counts["confirmed"] == sum(row["value"] == '"x"' for row in mine)
        assert {row["text"] for row in mine} <= clear
        assert counts["agreed"] == sum(row["value"] == majority[str(row["text"])] for row in mine)


def test_agreement_follows_new_replaced_and_erased_rows(tmp_path: Path) -> None:
    log, search = filled(tmp_path / "log"), EventSearch(str(tmp_path / "log"))
    before = search.agreement("u1")["labelled"]
    append(log, FILES * PER_FILE, 8)
    assert search.agreement("u1")["labelled"] == before + 3
    assert log.compact("predictions")
    assert search.agreement("u1")["labelled"] == before + 3
    log.erase("predictions", f"prediction_id = '{1:032x}'")
    assert search.agreement("u1")["labelled"] == before + 2


@pytest.mark.parametrize("text", ["", "x", "12", "12x.y", "-1.y", "٣.y", "1" * 17 + ".y"])
def test_a_cursor_that_nobody_wrote_is_none(text: str) -> None:
    assert Cursor.read(text) is None
