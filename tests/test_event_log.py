"""The event log on real Delta tables: a row and its position are one commit, whoever writes."""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.feature_store.event_log import ConcurrentCommitError, EventLog
from tests.support.stored_rows import rows


def stored(log: EventLog) -> list[str]:
    files = DeltaTable(log.uri("feedback")).file_uris()
    return sorted(i for file in files for i in pq.read_table(file)["feedback_id"].to_pylist())


def test_an_empty_log_has_tables_and_no_positions(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "not" / "there" / "yet"))
    assert log.positions("feedback") == log.positions("predictions") == {}
    assert log.position("feedback", "t/0") == -1
    assert stored(log) == []


def test_stored_offsets_are_never_stored_again(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path))
    assert log.append("feedback", pa.concat_tables([rows(0, 10), rows(0, 5, partition=1)])) == 15
    assert log.append("feedback", rows(0, 10)) == 0
    both = pa.concat_tables([rows(8, 12), rows(0, 7, partition=1), rows(0, 2, topic_id="new")])
    assert log.append("feedback", both) == 2 + 2 + 2
    assert log.positions("feedback") == {"t/0": 11, "t/1": 6, "new/0": 1}
    assert stored(log) == sorted(
        [f"t-0-{i}" for i in range(12)] + [f"t-1-{i}" for i in range(7)] + [f"new-0-{i}" for i in range(2)]
    )


def test_a_position_may_pass_messages_that_became_no_row(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path))
    assert log.append("feedback", rows(0, 2), {"t/0": 5}) == 2
    assert log.append("feedback", rows(0, 0), {"t/1": 3}) == 0
    reopened = EventLog(str(tmp_path))
    assert [reopened.position("feedback", place) for place in ("t/0", "t/1", "t/2")] == [5, 3, -1]
    assert reopened.append("feedback", rows(3, 8)) == 2
    assert reopened.positions("feedback") == {"t/0": 7}


def test_writers_that_race_for_the_same_offsets_store_each_once(tmp_path: Path) -> None:
    EventLog(str(tmp_path))
    counts: list[int] = []
    refusals: list[ConcurrentCommitError] = []
    together = threading.Barrier(3)

    def write() -> None:
        log = EventLog(str(tmp_path))
        for batch in range(8):
            together.wait(30)
            try:
                counts.append(log.append("feedback", rows(batch * 5, batch * 5 + 5)))
            except ConcurrentCommitError as error:
                refusals.append(error)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert sum(counts) == 40
    assert len(counts) + len(refusals) == 24
    assert stored(EventLog(str(tmp_path))) == sorted(f"t-0-{i}" for i in range(40))


def test_a_writer_with_a_stale_view_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked, slept through its successor's commit, and wakes up to write."""
    zombie, successor = EventLog(str(tmp_path)), EventLog(str(tmp_path))
    zombie.append("feedback", rows(0, 3))
    look = DeltaTable.update_incremental

    def look_and_sleep(table: DeltaTable) -> None:
        look(table)
        monkeypatch.undo()
        successor.append("feedback", rows(3, 6))

    monkeypatch.setattr(DeltaTable, "update_incremental", look_and_sleep)
    with pytest.raises(ConcurrentCommitError, match="feedback"):
        zombie.append("feedback", rows(3, 9))
    assert zombie.append("feedback", rows(3, 9)) == 3
    assert len(stored(zombie)) == len(set(stored(zombie))) == 9


def test_compaction_keeps_rows_and_positions_and_few_files(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path))
    compacted = 0
    for n in range(40):
        assert log.append("feedback", rows(n, n + 1), {"t/1": n}) == 1
        if log.compaction_due("feedback", every=10):
            compacted += log.compact("feedback")
    assert compacted >= 3
    assert len(DeltaTable(log.uri("feedback")).file_uris()) <= 12
    assert stored(log) == sorted(f"t-0-{i}" for i in range(40))
    reopened = EventLog(str(tmp_path))
    assert (reopened.position("feedback", "t/0"), reopened.position("feedback", "t/1")) == (39, 39)
    assert list((tmp_path / "feedback/_delta_log").glob("*.checkpoint.parquet"))


def test_what_compaction_replaced_is_deleted_only_when_no_reader_can_still_need_it(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path))
    for n in range(6):
        log.append("feedback", rows(n, n + 1))
    assert log.compact("feedback")  # the first deletes what is old enough, which nothing is
    assert len(DeltaTable(log.uri("feedback")).file_uris()) == 1
    assert len(list((tmp_path / "feedback").glob("*.parquet"))) == 7


def test_a_log_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path))
    log.append("feedback", rows(0, 1))
    (tmp_path / "feedback").rename(tmp_path / "away")
    with pytest.raises(OSError, match="feedback"):
        log.append("feedback", rows(1, 2))
    (tmp_path / "away").rename(tmp_path / "feedback")
    assert log.append("feedback", rows(0, 2)) == 1


def test_the_version_is_that_of_delta_whoever_commits_and_reads_no_file(tmp_path: Path) -> None:
    log, other = EventLog(str(tmp_path)), EventLog(str(tmp_path))
    for n in range(4):
        other.append("feedback", rows(n, n + 1))
        assert log.version("feedback") == DeltaTable(log.uri("feedback")).version() == n + 1
    assert other.compact("feedback")
    assert other.erase("feedback", "feedback_id = 't-0-2'") == 1  # leaves a checkpoint and removes commits
    newest = DeltaTable(log.uri("feedback")).version()
    for path in (tmp_path / "feedback").glob("*.parquet"):
        path.write_bytes(b"damaged")
    assert log.version("feedback") == newest
    assert EventLog(str(tmp_path / "new")).version("predictions") == 0
