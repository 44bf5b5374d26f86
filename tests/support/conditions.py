"""The conditions that servers give to a process, as a command line and an environment.

Turns a command of `ratchet` into one without HOME, terminal or standard input, with a few files, a given umask, and other
people's modules of our packages' names in the working directory and on PYTHONPATH. tests/test_conditions.py starts every process
so.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy import install
from tests.support.fakes import REPOSITORY

FILES = 256
PACKAGES = ("schemas", "serving", "pipelines", "services")
# Summer time all the year, in a place eleven hours ahead of UTC.
SUMMER = "STD-10DST,J1/0,J365/23"


@dataclass(frozen=True)
class Conditions:
    """What a process finds when it starts.

    Args:
        folder: its working directory.
        ratchet: the command of a clone, as `make install` writes it.
        umask: octal digits.
        environment: all of its environment.

    """

    folder: Path
    ratchet: Path
    umask: str
    environment: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, umask: str, **variables: str) -> "Conditions":
        """Make a working directory with modules that end any process that imports them."""
        folder.mkdir()
        for name in PACKAGES:
            (folder / f"{name}.py").write_text(f"raise SystemExit('a stranger: {name}')\n", encoding="utf-8")
        install.write_command(folder / "ratchet", sys.executable, REPOSITORY)
        environment = {"PATH": os.environ["PATH"], "LANG": "C", "TZ": SUMMER, "PYTHONPATH": str(folder), **variables}
        return cls(folder, folder / "ratchet", umask, environment)

    def run(self, *words: str | Path, timeout_s: float = 900) -> "subprocess.CompletedProcess[bytes]":
        """Run a command of `ratchet` to its end."""
        return subprocess.run(
            self._command(*words),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            start_new_session=True,  # no terminal
        )

    def start(self, log: Path, *words: str | Path) -> "subprocess.Popen[bytes]":
        """Start a command of `ratchet`, whose output is appended to a file."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self._command(*words),
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _command(self, *words: str | Path) -> list[str | Path]:
        shell = f'umask {self.umask}; ulimit -n {FILES}; exec "$@" <&-'
        return ["sh", "-c", shell, "sh", self.ratchet, *words]
