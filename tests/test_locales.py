"""Whatever the locale's encoding is: files are UTF-8, arguments and paths are as typed, and printing never fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.settings import render_settings
from serving.registry.registry import Registry
from tests.support.fakes import REPOSITORY

LABELS = ["größe", "表格", "naïve"]


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a compiled locale whose encoding is not UTF-8."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-c", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    try:
        made = subprocess.run(command, check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("localedef is not installed")
    if not (folder / "en_US.ISO-8859-1").exists():
        pytest.skip(f"localedef cannot compile en_US.ISO-8859-1: {made.stderr.decode()[:200]}")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a project whose folder has a name that is no ASCII: bytes to the system, UTF-8 to us."""
    folder = tmp_path_factory.mktemp("größe 表")
    config = folder / "ratchet.toml"
    config.write_text(render_settings({"model": {"name": "m"}}), encoding="utf-8")
    registry = Registry(f"sqlite:///{folder}/state/registry.db", "m")
    registry.migrate()
    registry.set_labels(LABELS)
    registry.close()
    return config


def run(arguments: list[str], **environment: str) -> "subprocess.CompletedProcess[bytes]":
    known = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    command = [sys.executable, "-m", "services.cli.main", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env={**known, **environment}, check=False, capture_output=True)


# click takes an ASCII terminal for a misconfigured one, and writes UTF-8 to it.
@pytest.mark.parametrize(
    ("environment", "encoding"),
    [
        ({"LC_ALL": "C"}, "utf-8"),
        ({"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "utf-8"),
        ({"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}, "utf-8"),
        ({"LC_ALL": "en_US.ISO-8859-1"}, "latin-1"),
    ],
    ids=str,
)
def test_labels_are_printed_in_the_terminals_encoding(
    config: Path, locales: Path, environment: dict[str, str], encoding: str
) -> None:
    done = run(["labels", "list", "-c", str(config)], LOCPATH=str(locales), **environment)
    assert done.returncode == 0, done.stderr
    expected = [label.encode(encoding, "backslashreplace").decode(encoding) for label in LABELS]
    assert [line.rsplit("  ", 1)[0] for line in done.stdout.decode(encoding).splitlines()] == expected
