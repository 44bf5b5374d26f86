"""Damage to the event log's newest commits: nothing is lost in silence, and what is sent again is stored once."""

import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipelines.feature_store.event_log import EventLog, snapshot
from pipelines.feature_store.event_log_repair import DAMAGED
from pipelines.feature_store.event_log_tail import EventLogDamaged
from tests.support.stored_rows import rows

BATCH, COMMITS = 20, 6
SENT = BATCH * COMMITS
DRAWS = int(os.environ.get("RATCHET_TEST_DRAWS", "2"))  # 12 make a hundred

Damage = Callable[[bytes, random.Random], bytes | None]


def cut_off(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def page_zeroed(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]


KINDS: dict[str, Damage] = {
    "empty": lambda _content, _draw: b"",
    "missing": lambda _content, _draw: None,
    "zeroed": lambda content, _: bytes(len(content)),
    "zeroed from somewhere on": lambda content, draw: cut_off(content, draw).ljust(len(content), b"\0"),
    "cut off": cut_off,
    "cut off after the first line": lambda content, _: content.split(b"\n")[0],
    "cut off before the last line": lambda content, _: b"\n".join(content.split(b"\n")[:-1]),
    "a page zeroed": page_zeroed,
    "something else": lambda content, draw: draw.randbytes(len(content)),
}


DRAWN = ("zeroed from somewhere on", "cut off", "a page zeroed", "something else")


def damage(path: Path, kind: str, draw: random.Random) -> None:
    content = KINDS[kind](path.read_bytes(), draw)
    path.unlink() if content is None else path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of COMMITS commits of BATCH rows, each with two positions."""
    folder = tmp_path_factory.mktemp("whole")
    log = EventLog(str(folder))
    for n in range(COMMITS):
        log.append("feedback", rows(n * BATCH, (n + 1) * BATCH), {"t/1": n})
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "log"))


def commit(folder: Path, version: int) -> Path:
    return folder / f"feedback/_delta_log/{version:020d}.json"


def newest_file(folder: Path) -> Path:
    return max((folder / "feedback").glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)


def stored(log: EventLog) -> list[str]:
    table = snapshot(DeltaTable(log.uri("feedback"))).to_table(columns=["feedback_id", "value"])
    assert set(table["value"].to_pylist()) <= {'"a"'}
    return sorted(table["feedback_id"].to_pylist())


def send_again(log: EventLog) -> None:
    """What a consumer does that finds the log at an earlier position."""
    log.append("feedback", rows(log.position("feedback", "t/0") + 1, SENT), {"t/1": COMMITS - 1})


EVERYTHING = sorted(f"t-0-{i}" for i in range(SENT))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["commit", "file"])
def test_of_many_damaged_tails_none_loses_anything(
    target: str, kind: str, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(f"{target} {kind}")
    for n in range(DRAWS if kind in DRAWN else 1):
        folder = Path(shutil.copytree(whole, tmp_path / str(n)))
        damage(commit(folder, COMMITS) if target == "commit" else newest_file(folder), kind, draw)
        caplog.clear()
        log = EventLog(str(folder))
        silent = not caplog.records
        position = log.position("feedback", "t/0")
        assert stored(log) == sorted(f"t-0-{i}" for i in range(position + 1))  # rows and position still agree
        assert not silent or position == SENT - 1 or (target, kind) == ("commit", "missing")
        send_again(log)
        assert stored(log) == EVERYTHING


def test_a_tail_that_is_damaged_while_others_follow_is_set_aside_at_the_next_look(copy: Path) -> None:
    follower, writer = EventLog(str(copy)), EventLog(str(copy))
    writer.append("feedback", rows(SENT, SENT + 5))
    commit(copy, COMMITS + 1).write_bytes(b"")
    with pytest.raises(EventLogDamaged, match=r"0007\.json is empty"):
        follower.position("feedback", "t/0")
    assert follower.position("feedback", "t/0") == SENT - 1
    assert follower.append("feedback", rows(SENT, SENT + 5)) == 5


def test_what_is_set_aside_is_kept_with_its_rows_and_a_line_says_where(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = newest_file(copy)
    commit(copy, COMMITS).write_bytes(b"")
    with caplog.at_level(logging.ERROR):
        EventLog(str(copy))
    (folder,) = (copy / "feedback" / DAMAGED).iterdir()
    assert {path.name for path in folder.iterdir()} >= {f"{COMMITS:020d}.json", file.name}
    assert f"commit {COMMITS} is empty: set aside in {folder}" in caplog.text


def test_several_damaged_commits_at_the_end_are_one_tail(copy: Path) -> None:
    for version in range(COMMITS - 2, COMMITS + 1):
        commit(copy, version).write_bytes(b"")
    log = EventLog(str(copy))
    assert log.position("feedback", "t/0") == (COMMITS - 3) * BATCH - 1
    send_again(log)
    assert stored(log) == EVERYTHING


@pytest.mark.parametrize("kind", ["empty", "missing", "cut off"])
def test_damage_before_a_whole_commit_is_refused_and_nothing_is_moved(kind: str, copy: Path) -> None:
    damage(commit(copy, COMMITS - 2), kind, random.Random(1))
    before = sorted(path.name for path in (copy / "feedback/_delta_log").iterdir())
    with pytest.raises(EventLogDamaged, match=f"{COMMITS - 2:020d}.json is .* restore .*backup"):
        EventLog(str(copy))
    assert sorted(path.name for path in (copy / "feedback/_delta_log").iterdir()) == before


def test_an_old_file_that_is_lost_is_refused_by_name(copy: Path) -> None:
    oldest = min((copy / "feedback").glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    oldest.unlink()
    with pytest.raises(EventLogDamaged, match=f"{oldest.name}.* missing.*backup"):
        EventLog(str(copy))


@pytest.mark.parametrize("kind", ["empty", "missing", "cut off", "zeroed"])
@pytest.mark.parametrize("target", ["checkpoint", "hint", "file"])
def test_a_damaged_compaction_or_checkpoint_costs_no_row(target: str, kind: str, copy: Path) -> None:
    log = EventLog(str(copy))
    assert log.compact("feedback")
    (checkpoint,) = (copy / "feedback/_delta_log").glob("*.checkpoint.parquet")
    paths = {"checkpoint": checkpoint, "hint": checkpoint.parent / "_last_checkpoint", "file": newest_file(copy)}
    damage(paths[target], kind, random.Random(2))
    reopened = EventLog(str(copy))
    assert stored(reopened) == EVERYTHING
    assert reopened.position("feedback", "t/0") == SENT - 1
    assert reopened.append("feedback", rows(SENT, SENT + 1)) == 1
    assert reopened.compact("feedback")
