"""docs/quickstart.md word for word: every command of the page runs, in its order, in an empty folder.

The ports are others, and the first champion trains for fewer epochs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import install
from tests.support.fakes import REPOSITORY, free_port

PAGE = (REPOSITORY / "docs/quickstart.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_commands_of_the_quickstart_run_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    install.write_command(tmp_path / "bin/ratchet", sys.executable, REPOSITORY)
    port = free_port()
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    script = "set -m\n" + "".join(blocks).replace("localhost:3000", f"localhost:{port}")  # with jobs, as in a terminal
    known = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
    others = {
        "RATCHET_SERVING__PORT": str(port),
        "RATCHET_CONSOLE__PORT": str(free_port()),
        "RATCHET_TRAINING__EPOCHS": "2",
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env=known | others | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=1200,
        encoding="utf-8",
    )
    log = tmp_path / "shop/up.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text(encoding="utf-8") if log.exists() else "")
    assert re.search(r'"label": ?"(card|pin|refund)"', done.stdout)
    assert '"feedback_id"' in done.stdout
    assert "FAIL" not in done.stdout
    assert log.read_text(encoding="utf-8").splitlines()[-1].startswith("stopped")
