"""A supervised child's log: it is moved aside while the child writes on, and its disk is bounded."""

import os
import sys
from functools import partial
from pathlib import Path

from services.supervisor.children import Child
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


def _seen(child: Child, n: int) -> bool:
    child.watch()
    return f"line {n} " in child.last_line
