"""A supervised child: its log is moved aside while the child writes on, and a sweep finds its processes at every moment."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from services.rounds.executor import MARK
from services.supervisor.children import STARTING_S, Child, marked, sweep
from tests.support.fakes import wait_until

WRITES_WHEN_ASKED = """
import sys
for line in open(sys.argv[1], encoding="utf-8"):
    print(line * 100, flush=True)
"""


def test_a_log_that_grows_is_moved_aside_while_the_child_writes_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "said")
    child = Child(
        "part",
        [sys.executable, "-c", WRITES_WHEN_ASKED, str(tmp_path / "said")],
        environment=dict(os.environ),
        logs=tmp_path,
        mark=f"{tmp_path}:part",
        log_bytes=5000,
    )
    child.start()
    aside = tmp_path / "part.log.1"
    try:
        with (tmp_path / "said").open("w", encoding="utf-8", buffering=1) as said:
            for n in range(30):
                said.write(f"line {n} größe\n")
                wait_until(partial(_seen, child, n), every_s=0.002)
                assert child.log.stat().st_size <= 5000 + 2000
        assert aside.stat().st_size <= 5000 + 2000
        whole = aside.read_text(encoding="utf-8") + child.log.read_text(encoding="utf-8")
        assert "line 29 größe" in whole
        assert "\0" not in whole
    finally:
        child.stop(2)


def test_a_sweep_finds_a_process_that_is_just_starting(tmp_path: Path) -> None:
    """Linux shows no environment while a process replaces its program; this one does so without end."""
    script, mark = tmp_path / "again", f"{tmp_path}:part"
    script.write_text('#!/bin/sh\nexec "$0"\n', encoding="utf-8")
    script.chmod(0o755)
    process = subprocess.Popen([script], env={**os.environ, MARK: mark})
    try:
        assert all(marked(mark, wait_s=STARTING_S) == [process.pid] for _ in range(100))
        assert sweep(mark) == 1
        assert process.wait(5) < 0
    finally:
        process.kill()
        process.wait(5)


def _seen(child: Child, n: int) -> bool:
    child.watch()
    return f"line {n} " in child.last_line
