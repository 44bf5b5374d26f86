"""Executors: where a claimed round runs.

Turns a round's id into a niced process of its own, `ratchet round run --claimed ID`. The training scheduler starts it and
asks where it is. It deliberately knows nothing of what a round does.

The process is in a group of its own and outlives a scheduler that dies; the next scheduler finds it by its lock.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from schemas.settings import Settings
from services.rounds.process import Whereabouts, lock_file, whereabouts

REPOSITORY = Path(__file__).parents[2]
# Files are read and written as UTF-8 by name; this is for what libraries open, and for arguments and paths of any locale.
UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
MARK = "RATCHET_SUPERVISED"  # names, in the environment of a process and of those below it, whose child it is
STOP_S = 5.0


def round_mark(settings: Settings) -> str:
    """What a project's round processes are found by."""
    return f"{settings.root.absolute()}:round"


def round_command(config: Path, round_id: str, token: int | None) -> list[str]:
    """The command line of one round's process."""
    command = [sys.executable, "-m", "services.cli.main", "round", "run", "--claimed", round_id]
    command += ["-c", str(config.absolute())]
    return command if token is None else [*command, "--token", str(token)]


class LocalExecutor:
    """One round at a time, as a child process with its output in state/logs."""

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
        path = self.log(round_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["nice", "-n", str(self._settings.training.nice), *round_command(self._config, round_id, token)]
        with path.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **UTF8, MARK: round_mark(self._settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, round_id: str) -> Path:
        """Where a round's output goes."""
        return self._settings.path("state/logs") / f"round-{round_id}.log"

    def whereabouts(self, round_id: str) -> Whereabouts:
        """Where the round's process is."""
        if round_id == self._round_id and self._child is not None and self._child.poll() is None:
            return Whereabouts.HERE
        found, _ = whereabouts(lock_file(self._settings, round_id))
        # Our own child may have ended before it got as far as its lock.
        return Whereabouts.GONE if found is Whereabouts.UNKNOWN and round_id == self._round_id else found

    def exit_code(self, round_id: str) -> int | None:
        """What the round's process ended with, minus the signal if it was killed; None if it lives or was not ours."""
        return self._child.poll() if self._child is not None and round_id == self._round_id else None

    def starts(self, round_id: str) -> int:
        """How often we have started this round."""
        return self._starts if round_id == self._round_id else 0

    def seconds_since_start(self, round_id: str) -> float | None:
        """Seconds since we last started this round; None if we never have."""
        return time.monotonic() - self._started_at if round_id == self._round_id else None

    def stop(self) -> str | None:
        """End our child and whatever it started; return its round, which is resumed later, or None if none ran."""
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
