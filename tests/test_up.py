"""The supervisor's parts: children that die, signals that are ignored, addresses, and the state file."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.settings import Settings
from services import up
from services.rounds.executor import REPOSITORY
from services.supervisor import children, state_file
from services.supervisor.children import Child
from services.supervisor.own_address import answers, bind_address, fetch, url_of
from services.supervisor.writable_folders import settle
from services.up import Supervisor
from tests.support.fakes import wait_until


def _child(tmp_path: Path, code: str) -> Child:
    command = [sys.executable, "-c", code]
    return Child("part", command, environment=dict(os.environ), logs=tmp_path / "logs", mark=f"{tmp_path}:part")


def _watched(child: Child) -> list[str]:
    """The lines of one death."""
    lines: list[str] = []

    def looked() -> bool:
        lines.extend(child.watch())
        return bool(lines)

    wait_until(looked, timeout_s=10)
    return lines


def test_a_child_that_ends_by_itself_failed_and_its_last_line_is_shown(tmp_path: Path) -> None:
    child = _child(tmp_path, "import sys; print('the port is taken', flush=True); sys.exit(3)")
    child.start()
    assert _watched(child) == ["ended with 3: the port is taken: starting again in 0.2 s"]
    assert (child.deaths, child.failures) == (1, 1)
    assert child.trouble == "ended with 3: the port is taken (death 1 in a row)"
    child.stop(1)


def test_a_child_that_was_killed_from_outside_did_not_fail(tmp_path: Path) -> None:
    child = _child(tmp_path, "import time; time.sleep(60)")
    for n in range(1, up.TRIES + 2):
        child.start()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        [line] = _watched(child)
        assert line.startswith("was ended by SIGKILL: starting again in ")
        assert child.deaths == n
    assert child.failures == 0, "bad luck is no reason to give up"
    child.stop(1)


def test_a_child_whose_log_cannot_be_opened_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LONGEST_DELAY_S", 0.0)
    child = _child(tmp_path, "import sys; sys.exit(1)")
    child.start()
    _watched(child)
    child.log.unlink()
    child.log.mkdir()  # opening it fails, as it does on a full disk
    [line] = _watched(child)
    assert line.startswith("cannot start: Is a directory: starting again in ")
    child.log.rmdir()
    wait_until(lambda: child.watch() is not None and child.log.is_file(), timeout_s=10)
    child.stop(1)


def _supervisor(settings: Settings, said: list[str]) -> Supervisor:
    return Supervisor(settings, settings.root / "ratchet.toml", said.append)


def test_a_state_file_that_cannot_be_written_ends_nothing_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "RETRY_S", 0.0)
    said: list[str] = []
    supervisor = _supervisor(Settings(root=tmp_path), said)
    supervisor._is_up = True
    (tmp_path / "state/up.part").mkdir(parents=True)  # in its way, as a full disk is
    supervisor._watch()
    supervisor._watch()
    assert [line for line in said if "cannot write state/up.json" in line]
    (tmp_path / "state/up.part").rmdir()
    supervisor._watch()
    state = json.loads((tmp_path / "state/up.json").read_text(encoding="utf-8"))
    assert state["triggers"]["min_feedback"] == 200
    (tmp_path / "state/up.json").unlink()
    supervisor._watch()
    assert (tmp_path / "state/up.json").exists(), "somebody's tidying up is made good"


IGNORING = """
import signal, sys, threading
from services.supervisor.signals import stop_on
stop = threading.Event()
stop_on(stop, signal.SIGHUP, signal.SIGTERM)
print("ready", flush=True)
while not stop.wait(0.05): pass
print("stopped", flush=True)
"""


@pytest.mark.parametrize("ignored", [True, False])
def test_a_signal_that_nohup_ignores_stays_ignored(ignored: bool) -> None:
    command = ["sh", "-c", 'trap "" HUP; exec "$@"' if ignored else 'exec "$@"', "sh", sys.executable, "-c", IGNORING]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    if ignored:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stdout.read() == "stopped\n"


def test_a_child_can_be_stopped_though_sigterm_is_ignored_above(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        child = _child(tmp_path, "import time; print('ready', flush=True); time.sleep(60)")
        child.start()
        wait_until(lambda: child.watch() is not None and child.ready, timeout_s=10)
        started = time.monotonic()
        assert child.stop(10)
        assert time.monotonic() - started < 5
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:3000"),
        ("0.0.0.0", "http://127.0.0.1:3000"),  # noqa: S104 - written, not bound
        ("::", "http://[::1]:3000"),
        ("::1", "http://[::1]:3000"),
        ("localhost", "http://localhost:3000"),
    ],
)
def test_urls_are_written_as_they_can_be_opened(host: str, url: str) -> None:
    assert url_of(host, 3000) == url


def test_a_name_is_bound_by_its_address() -> None:
    assert bind_address("localhost", 3000) in ("127.0.0.1", "::1")
    assert bind_address("127.0.0.1", 3000) == "127.0.0.1"


@pytest.fixture
def server() -> Iterator[str]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"fine")

        def log_message(self, *_: object) -> None: ...

    answering = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=answering.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{answering.server_port}"
    answering.shutdown()
    answering.server_close()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_is_not_asked_for_our_own_addresses(
    variable: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert fetch(f"{server}/readyz", timeout_s=5) == b"fine"
    assert answers(f"{server}/readyz")


def test_libraries_write_below_the_state_where_there_is_no_home(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path / "missing"), "HOME": str(tmp_path / "nowhere"), "HF_HOME": "/kept"}
    settle(Settings(root=tmp_path), environ)
    assert Path(environ["TMPDIR"]).is_dir()
    assert environ["MPLCONFIGDIR"] == str(tmp_path / "state/home/matplotlib")
    assert Path(environ["MPLCONFIGDIR"]).is_dir()
    assert environ["HF_HOME"] == "/kept", "what is set stays"


def test_a_home_that_can_be_written_is_left_alone(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    settle(Settings(root=tmp_path), environ)
    assert environ == {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
