"""An outbox on a full disk or in a damaged file: predictions go on, feedback is refused or safe, and all heals by itself."""

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from serving.messaging.outbox import OutboxUnavailable
from serving.messaging.outbox_disk import AT_ONCE, Connection, OutboxDisk
from serving.messaging.outbox_store import Row, make_table, open_disk, waiting, write
from serving.messaging.publisher import Outgoing
from tests.support.fakes import REPOSITORY, free_port, wait_until
from tests.support.kafka_tools import own_broker
from tests.support.outboxes import TOPICS, feedback, make_topics, outbox, prediction, published

EVENTS = 400
PAGE = 4096


def garbage(content: bytes) -> bytes:
    return random.Random(1).randbytes(len(content))


def pages_zeroed(content: bytes, first: int, last: int) -> bytes:
    return content[: first * PAGE] + bytes((last - first) * PAGE) + content[last * PAGE :]


# What becomes of the file, and how many of its events must come back
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "first page zeroed": (lambda content: pages_zeroed(content, 0, 1), EVENTS),
    "header overwritten": (lambda content: garbage(content[:100]) + content[100:], EVENTS),
    "pages zeroed in the middle": (lambda content: pages_zeroed(content, 20, 22), EVENTS - 60),
    "cut off in the middle": (lambda content: content[: len(content) // 2 // PAGE * PAGE], EVENTS // 4),
    "overwritten": (garbage, 0),
}


def filled(folder: Path) -> Path:
    """An outbox that was closed with EVENTS events in it."""
    box = outbox(folder, f"127.0.0.1:{free_port()}")
    for answer in [box.put_feedback(feedback(f"f{i}", "x" * 300)) for i in range(EVENTS)]:
        answer.result(timeout=60)
    box.close(5)
    return folder / "outbox-0.db"


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_set_aside_read_out_and_replaced(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = filled(tmp_path)
    change, expected = DAMAGES[kind]
    path.write_bytes(change(path.read_bytes()))
    box = outbox(tmp_path, f"127.0.0.1:{free_port()}")
    box.put_prediction(prediction("p"))
    box.put_feedback(feedback("new")).result(timeout=60)
    wait_until(lambda: box.waiting >= expected + 2)
    box.close(5)
    assert box.dropped == 0
    (aside,) = (found for found in tmp_path.glob("outbox-0.db.damaged-*") if found.name[-4:] not in ("-wal", "-shm"))
    (line,) = (message for message in caplog.messages if "cannot be read" in message)
    assert str(aside) in line
    assert f"{waiting(tmp_path) - 2} events recovered" in line


def test_a_file_that_is_damaged_while_in_use_loses_no_feedback_that_is_answered_for(tmp_path: Path) -> None:
    with own_broker() as broker:
        make_topics(broker.address)
        box = outbox(tmp_path, broker.address)
        box.put_feedback(feedback("before")).result(timeout=60)
        wait_until(lambda: box.published == 1)
        for ending in ("", "-wal"):
            path = Path(f"{tmp_path / 'outbox-0.db'}{ending}")
            path.write_bytes(garbage(path.read_bytes()))
        answered = []
        for number in range(20):
            if box.put_feedback(feedback(f"f{number}")).exception(timeout=60) is None:
                answered.append(f"f{number}")
        assert answered
        wait_until(lambda: set(answered) <= set(published(broker.address, TOPICS.feedback)), every_s=0.5)
        box.close(5)


def test_another_workers_damaged_file_does_not_stop_ours(tmp_path: Path) -> None:
    path = filled(tmp_path)
    other = path.rename(path.with_name("outbox-7.db"))
    other.write_bytes(pages_zeroed(other.read_bytes(), 0, 1))
    with own_broker() as broker:
        make_topics(broker.address)
        box = outbox(tmp_path, broker.address)
        wait_until(lambda: box.published == EVENTS)
        box.close(5)


@pytest.mark.parametrize("left", ["", None])
def test_a_file_in_use_that_is_empty_or_gone_is_said(
    left: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = filled(tmp_path)
    path.unlink() if left is None else path.write_text(left, encoding="utf-8")
    box = outbox(tmp_path, f"127.0.0.1:{free_port()}")
    box.put_feedback(feedback("new")).result(timeout=60)
    box.close(5)
    assert "the events that it held are lost" in caplog.text


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from tests.support.fakes import free_port, wait_until
from tests.support.outboxes import feedback, outbox, prediction
from serving.messaging.outbox import OutboxUnavailable
folder, started = Path(sys.argv[1]), sys.argv[2] == "started"
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
if not started: full()
box = outbox(folder, f"127.0.0.1:{free_port()}")
if started:
    box.put_feedback(feedback("before")).result(timeout=60)
    full()
for number in range(5): box.put_prediction(prediction(f"p{number}"))
wait_until(lambda: box.dropped == 5)
refused = box.put_feedback(feedback("refused")).exception(timeout=60)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
box.put_feedback(feedback("after")).result(timeout=60)
box.put_prediction(prediction("p"))
box.close(5)
print(json.dumps([type(refused).__name__, box.dropped]))
"""


@pytest.mark.parametrize("when", ["started", "starting"])
def test_a_full_disk_refuses_feedback_drops_predictions_and_heals(when: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "outbox"), when]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [OutboxUnavailable.__name__, 5]
    assert waiting(tmp_path / "outbox") == (3 if when == "started" else 2)


class FullOnce(Connection):
    """A connection to a disk that is full when a second part of another outbox comes; it counts the events of each part."""

    def __init__(self, disk: OutboxDisk) -> None:
        super().__init__(disk, "FULL")
        self.parts: list[int] = []

    def take_over(self, rows: Sequence[Row]) -> None:
        self.parts.append(len(rows))
        if len(self.parts) == 2:
            raise sqlite3.OperationalError("database or disk is full")
        super().take_over(rows)


def test_a_long_outbox_is_taken_over_in_parts_and_in_order_and_a_full_disk_in_between_doubles_nothing(
    tmp_path: Path,
) -> None:
    left = tmp_path / "outbox-7.db"
    with contextlib.closing(open_disk(left, "NORMAL")) as orphan:
        make_table(orphan)
        write(orphan, [Outgoing(TOPICS.feedback, b"p", b"%d" % number) for number in range(1200)])
    disk = OutboxDisk(tmp_path)
    mine = FullOnce(disk)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        disk.adopt(mine)
    assert disk.adopt(mine) == 1200 - AT_ONCE
    assert max(mine.parts) == AT_ONCE < 1200, "feedback that arrives meanwhile waits for a part, not for all"
    kept = mine.get().execute("SELECT value FROM events ORDER BY sequence").fetchall()
    mine.close()
    disk.close()
    assert [int(value) for (value,) in kept] == list(range(1200))
    assert waiting(tmp_path) == 1200, "none is left behind"
