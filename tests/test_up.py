"""The supervisor's parts: children that die, signals that are ignored, addresses, and the state file."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.settings import Settings
from services import up
from services.supervisor.children import Child
from services.supervisor.own_address import answers, fetch, url_of
from services.supervisor.state_file import StateFile
from services.supervisor.writable_folders import settle
from services.up import Supervisor
from serving.process.start import bind_address
from tests.support.disks import filled, small_disk
from tests.support.fakes import PATIENCE_S, REPOSITORY, wait_until


def _child(tmp_path: Path, code: str, longest_delay_s: float = 5.0) -> Child:
    command = [sys.executable, "-c", code]
    mark = f"{tmp_path}:part"
    return Child(
        "part",
        command,
        environment=dict(os.environ),
        logs=tmp_path / "logs",
        mark=mark,
        longest_delay_s=longest_delay_s,
    )


def _watched(child: Child) -> list[str]:
    """The lines of one death."""
    lines: list[str] = []

    def looked() -> bool:
        lines.extend(child.watch())
        return bool(lines)

    wait_until(looked)
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


def test_a_child_whose_log_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    child = _child(tmp_path, "import sys; sys.exit(1)", longest_delay_s=0.0)
    child.start()
    _watched(child)
    child.log.unlink()
    child.log.mkdir()  # opening it fails, as it does on a full disk
    [line] = _watched(child)
    assert line.startswith("cannot start: Is a directory: starting again in ")
    child.log.rmdir()
    wait_until(lambda: child.watch() is not None and child.log.is_file())
    child.stop(1)


def test_a_state_file_that_cannot_be_written_is_reported_once_and_written_later(tmp_path: Path) -> None:
    reasons: list[str] = []
    path = tmp_path / "state/up.json"
    file = StateFile(path, reasons.append, retry_s=0.0)
    (tmp_path / "state/up.part").mkdir(parents=True)  # in its way, as a full disk is
    for _ in range(2):
        file.write({"pid": 1})
    assert reasons == ["Is a directory"]
    (tmp_path / "state/up.part").rmdir()
    file.write({"pid": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"pid": 1}
    path.unlink()
    file.write({"pid": 1})
    assert path.exists(), "a file that somebody removed is written again"
    patient = StateFile(tmp_path / "other/up.json", reasons.append)
    (tmp_path / "other/up.part").mkdir(parents=True)
    patient.write({})
    (tmp_path / "other/up.part").rmdir()
    patient.write({})
    assert not (tmp_path / "other/up.json").exists(), "the next try is later"


def test_a_part_that_is_slow_to_start_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        (tmp_path / "said").touch()

    supervisor = Supervisor(Settings(root=tmp_path), tmp_path / "ratchet.toml", say)
    code = "import sys, time, pathlib\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
    code += "print('ready', flush=True); time.sleep(60)"
    child = supervisor.add("part", [sys.executable, "-c", code, str(tmp_path / "said")])
    supervisor.await_ready(0.0)
    assert child.ready
    assert said == [f"part       is not ready after 0 s, still waiting: see {child.log}"]
    child.stop(1)


@pytest.mark.root
def test_on_a_full_disk_the_state_is_written_in_place(tmp_path: Path) -> None:
    warned: list[str] = []
    with small_disk(tmp_path / "disk", 64) as mounted:
        assert mounted
        path = tmp_path / "disk/up.json"
        file = StateFile(path, warned.append, retry_s=0.0)
        file.write({"trouble": {}})
        with filled(path.parent):
            file.write({"trouble": {"serving": "ended with 1: No space left on device"}})
            assert json.loads(path.read_text(encoding="utf-8")) == {
                "trouble": {"serving": "ended with 1: No space left on device"}
            }
            assert warned == []
            file.write({"trouble": {"serving": "x" * 5000}})  # longer than its room
            assert warned == ["No space left on device"]
        file.write({"trouble": {"serving": "x" * 5000}})
        assert len(json.loads(path.read_text(encoding="utf-8"))["trouble"]["serving"]) == 5000


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
    above = signal.SIG_IGN if ignored else signal.SIG_DFL
    command = [sys.executable, "-c", IGNORING]
    before = signal.signal(signal.SIGHUP, above)  # inherited by the process, also where nohup started the tests
    try:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    if ignored:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stdout.read() == "stopped\n"


def test_a_child_can_be_stopped_though_sigterm_is_ignored_above(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        child = _child(tmp_path, "import time; print('ready', flush=True); time.sleep(600)")
        child.start()
        wait_until(lambda: child.watch() is not None and child.ready)
        assert child.stop(PATIENCE_S), "it ended before it would have been killed"
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
