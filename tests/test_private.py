"""What other users of the machine get: no port of the process manager, no file, no forged log line."""

import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.printable import one_line
from serving.process.log_lines import OneLine
from serving.process.private_files import close_folders
from tests.support.fakes import REPOSITORY, toy_rows, write_rows

START_ARBITER = """
import psutil
from serving import service
from bentoml._internal.utils.circus import create_standalone_arbiter

arbiter = create_standalone_arbiter(watchers=[])
arbiter.ctrl.initialize()
listening = [c.laddr for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"]
print(listening, arbiter.endpoint, arbiter.pubsub_endpoint)
"""


def test_the_process_manager_listens_on_no_port(tmp_path: Path) -> None:
    environment = {**os.environ, "RATCHET_CONFIG": "", "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [sys.executable, "-c", START_ARBITER],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] inproc://control inproc://events"


def test_a_project_is_made_for_its_own_user_alone(tmp_path: Path, tiny_base: Path) -> None:
    seed = write_rows(tmp_path / "seed.csv", toy_rows(20, seed=1))
    command = [sys.executable, "-m", "services.cli.main", "init", str(tmp_path / "p"), "--seed", str(seed)]
    before = os.umask(0o022)
    try:
        done = subprocess.run(
            [*command, "--base-model", str(tiny_base)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            encoding="utf-8",
        )
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    made = [tmp_path / "p", *(tmp_path / "p").rglob("*")]
    assert len(made) > 6
    open_to_others = [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []


def test_serving_starts_with_a_private_umask(tmp_path: Path) -> None:
    program, config = tmp_path / "python", tmp_path / "ratchet.toml"
    program.write_text("#!/bin/sh\numask\n", encoding="utf-8")
    program.chmod(0o700)
    config.write_text("", encoding="utf-8")
    code = "import os, sys; from pathlib import Path; from serving.process.start import serve; sys.executable = sys.argv[1]; "
    command = [sys.executable, "-c", f"{code} serve(Path(sys.argv[2]), os.environ)", program, config]
    assert (
        subprocess.check_output(["sh", "-c", 'umask 000; exec "$@"', "sh", *map(str, command)], cwd=REPOSITORY)
        == b"0077\n"
    )


def test_folders_of_an_earlier_version_are_closed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    close_folders([tmp_path / "state", tmp_path / "nothing"])
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\nc", r"a\nb\r\nc"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("abc\u202ecba", r"abc\u202ecba"),
        ("a\u2028b\x85c\x00", r"a\u2028b\x85c\x00"),
        ("half \ud800", r"half \ud800"),
        ("Größe 东京 कि 👩‍👩‍👧 $$ [bold] {0} %s", "Größe 东京 कि 👩‍👩‍👧 $$ [bold] {0} %s"),
    ],
)
def test_text_from_outside_is_one_line_that_no_terminal_obeys(text: str, line: str) -> None:
    assert one_line(text) == line


def test_a_label_cannot_forge_a_log_line() -> None:
    forged = "x\n2026-01-01 00:00:00,000 ratchet.live serving evil, generation 9\x1b[2J"
    try:
        raise ValueError(forged)
    except ValueError:
        trace = sys.exc_info()
    record = logging.LogRecord("ratchet.api", logging.ERROR, "", 0, "unknown label %s", (forged,), trace)
    first, *others = OneLine("%(asctime)s %(name)s %(message)s").format(record).splitlines()
    assert first.endswith(r"unknown label x\n2026-01-01 00:00:00,000 ratchet.live serving evil, generation 9\x1b[2J")
    assert others
    assert all(line.startswith("  ") for line in others)
    assert "\x1b" not in "".join(others)


def test_times_in_the_log_are_utc_whatever_the_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "STD-10DST,J1/0,J365/23")  # summer time all the year, eleven hours ahead
    time.tzset()
    record = logging.LogRecord("ratchet.api", logging.INFO, "", 0, "x", (), None)
    record.created, record.msecs = 1_764_415_800.25, 250.0
    line = OneLine("%(asctime)s %(name)s %(message)s").format(record)
    monkeypatch.undo()
    time.tzset()
    assert line == "2025-11-29 11:30:00,250Z ratchet.api x"


def test_a_long_text_is_cut() -> None:
    assert one_line("a" * 10_000, 32) == "a" * 31 + "…"
