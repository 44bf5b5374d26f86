"""Executors: where a claimed round runs.

Turns a round's id into a niced process of its own, `ratchet round run --claimed ID`. The training scheduler starts and
watches it. It deliberately knows nothing of what a round does.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from schemas.settings import Settings

REPOSITORY = Path(__file__).parent.parent


def round_command(config: Path, round_id: str, token: int | None) -> list[str]:
    """The command line of one round's process."""
    command = [
        sys.executable,
        "-m",
        "services.cli",
        "round",
        "run",
        "--claimed",
        round_id,
        "-c",
        str(config.absolute()),
    ]
    return command if token is None else [*command, "--token", str(token)]


class LocalExecutor:
    """One round at a time, as a child process with its output in state/logs."""

    def __init__(self, settings: Settings, config: Path) -> None:
        self._settings = settings
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, round_id: str, token: int) -> None:
        """Start the round's process."""
        logs = self._settings.path("state/logs")
        logs.mkdir(parents=True, exist_ok=True)
        niceness = self._settings.training.nice
        command: list[str] = ["nice", "-n", str(niceness), *round_command(self._config, round_id, token)]
        with (logs / f"round-{round_id}.log").open("ab") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": REPOSITORY}
            self._child = subprocess.Popen(command, env=os.environ.copy(), **options)

    def running(self) -> bool:
        """Whether the child that we started still runs."""
        return self._child is not None and self._child.poll() is None

    def stop(self) -> None:
        """End the child; its round is resumed later."""
        if self._child is not None and self.running():
            self._child.terminate()
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(5)
