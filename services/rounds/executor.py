"""Executors: run a claimed round in a process.

Turns a round's id into a niced process, `ratchet round run --claimed ID`. The training scheduler starts it and asks whether it
lives. The process has its own process group and outlives a scheduler that dies; the next scheduler finds it by its lock.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from schemas.settings import Settings
from services.rounds.process import Liveness, lock_file, read_lock
from serving.process.start import APPLICATION, UTF8

MARK = "RATCHET_SUPERVISED"  # in the environment of a process and its descendants: names the project and part
STOP_S = 5.0


def round_mark(settings: Settings) -> str:
    """Return the mark that identifies a project's round processes."""
    return f"{settings.root.resolve()}:round"


def round_command(config: Path, round_id: str, token: int | None) -> list[str]:
    """Return the command line of one round's process."""
    command = [sys.executable, "-m", "services.cli.main", "round", "run", "--claimed", round_id]
    command += ["-c", str(config.absolute())]
    return command if token is None else [*command, "--token", str(token)]


def start_niced(command: list[str], settings: Settings, path: Path) -> "subprocess.Popen[bytes]":
    """Start a niced process with the mark of rounds, in a process group of its own; its output is appended to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        return subprocess.Popen(
            ["nice", "-n", str(settings.training.nice), *command],
            cwd=APPLICATION,
            env={**os.environ, **UTF8, MARK: round_mark(settings)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class LocalExecutor:
    """Runs one round at a time, as a child process with its output in state/logs."""

    def __init__(self, settings: Settings, config: Path) -> None:
        self._settings = settings
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._round_id: str | None = None
        self._starts = 0
        self._started_at = 0.0

    def start(self, round_id: str, token: int) -> None:
        """Start the round's process."""
        self._starts = self._starts + 1 if round_id == self._round_id else 1
        self._round_id, self._started_at = round_id, time.monotonic()
        self._child = start_niced(round_command(self._config, round_id, token), self._settings, self.log(round_id))

    def log(self, round_id: str) -> Path:
        """Return the file of a round's output."""
        return self._settings.path("state/logs") / f"round-{round_id}.log"

    def liveness(self, round_id: str) -> Liveness:
        """Return whether the round's process runs, has ended, or was not started on this machine."""
        if round_id == self._round_id and self._child is not None and self._child.poll() is None:
            return Liveness.RUNNING
        liveness, _ = read_lock(lock_file(self._settings, round_id))
        # Our child may have ended before it took its lock.
        return Liveness.ENDED if liveness is Liveness.UNKNOWN and round_id == self._round_id else liveness

    def exit_code(self, round_id: str) -> int | None:
        """Return the exit code of the round's process, -signal if killed; None if it lives or is not our child."""
        return self._child.poll() if self._child is not None and round_id == self._round_id else None

    def starts(self, round_id: str) -> int:
        """Return how often this executor has started the round."""
        return self._starts if round_id == self._round_id else 0

    def seconds_since_start(self, round_id: str) -> float | None:
        """Return the seconds since this executor last started the round; None if it never did."""
        return time.monotonic() - self._started_at if round_id == self._round_id else None

    def stop(self) -> str | None:
        """End the child and its process group; return the id of its round, or None if none ran."""
        if self._child is None or self._child.poll() is not None:
            return None
        self._child.terminate()
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait(STOP_S)
        return self._round_id
