"""`ratchet demo --stay` after its walk: the console stays open at the address that was printed, and Ctrl-C stops everything.

The walk itself is tests/test_loop.py's; here its end runs on a small project whose rounds are over.
"""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx

from services.supervisor.own_address import refused
from tests.support import consoles
from tests.support.fakes import REPOSITORY, free_port
from tests.support.running_up import until

STAY = """
import signal, sys
from pathlib import Path
from services.demo.up_process import leave_open
from services.projects import open_project
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, even if the tests run in the background
leave_open(open_project(Path(sys.argv[1])), Path(sys.argv[1]))
"""


def test_the_console_stays_open_on_the_finished_walk(console_project: Path, tmp_path: Path) -> None:
    folder, port = tmp_path / "p", free_port()
    consoles.copied(console_project, folder)
    consoles.configure(folder, serving={"port": free_port(), "workers": 1}, console={"port": port, "try_page": "open"})
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", STAY, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout
        stream = process.stdout
        reader = threading.Thread(target=lambda: lines.extend(line.decode() for line in stream), daemon=True)
        reader.start()
        try:
            until(
                lambda: any("sign in with" in line for line in lines) or process.poll() is not None, 600
            )  # beside other loads
            shown = re.search(r"(http://\S+)\s+sign in with (\S+);", "".join(lines))
            assert shown, "".join(lines)
            with httpx.Client(base_url=shown[1], trust_env=False, timeout=60) as client:
                assert client.post("/sign-in", data={"key": shown[2]}).status_code == 303
                page = client.get("/").text
                assert "A candidate waits for a decision" in page
                assert client.get("/try").status_code == 200
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(120)
        reader.join(10)
    assert status == 0, "".join(lines)
    assert refused("127.0.0.1", port) is None, "nothing listens any more"
