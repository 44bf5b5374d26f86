"""Supervised children: one process each, with its log and restarts.

Turns a command into a process that is started, watched, restarted and stopped. The supervisor (up.py) holds one `Child` for
each part.

Every child carries a mark in its environment, which its descendants inherit: BentoML's workers start sessions of their own and
would hold the port after their parent died. The mark is read from /proc; on systems without it only the child's process group
is killed.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from services.rounds.executor import MARK
from serving.process.start import APPLICATION

LONGEST_DELAY_S = 5.0
STEADY_S = 30.0  # a child that ran this long counts its deaths from zero
REPEAT_S = 30.0  # a line that differs from an earlier one in numbers alone is shown again after these seconds
WORKERS_LOOK_S = 2.0
STARTING_S = 0.5  # longest wait for processes that are just starting, before a sweep
# Signals from outside (a person, the kernel out of memory, a service manager): no sign of bad settings.
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
LOG_BYTES = 10 * 10**6  # of a log before rotation; one rotated log is kept, so a child's logs take 20 MB

_LOG_LINE = re.compile(r"^\d{4}-\S+ \S+ (?:\d+ )?ratchet\.\w+ (.*)$")
_SHOWN = re.compile(
    r"^round |event log has lost|trying again|tries again|refused|messages to |^serving |dropped|failed|cannot|stuck for"
)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: after a fork, loading a library is unsafe


def module(name: str) -> list[str]:
    """Return the command that runs a module with this Python."""
    return [sys.executable, "-m", name]


def die_with_parent() -> None:
    """Make SIGTERM stop this child even if `up` ignores it, and on Linux send it when `up` ends. Runs before exec."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)


def marked(mark: str, *, wait_s: float = 0.0) -> list[int]:
    """Return the ids of this machine's processes that carry a mark; none without /proc.

    Linux shows an empty environment while a process replaces its program, so one that is just starting is asked again for up to
    `wait_s` seconds in all.
    """
    wanted = f"{MARK}={mark}".encode()
    until = time.monotonic() + wait_s
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            while not (environment := (entry / "environ").read_bytes()) and time.monotonic() < until:
                (entry / "exe").readlink()  # a kernel thread and a process that has ended have none
                time.sleep(0.001)
            if wanted in environment.split(b"\0") and int(entry.name) != os.getpid():
                pids.append(int(entry.name))
    return pids


def sweep(mark: str) -> int:
    """Kill every process that carries a mark and return their number."""
    pids = marked(mark, wait_s=STARTING_S)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


class Child:
    """Runs one supervised process.

    Args:
        name: prefix of the supervisor's lines and name of the log file.
        command: command line of the process.
        environment: environment of the process, without the mark.
        logs: folder of the log, `<name>.log`; the rotated log is `<name>.log.1`.
        mark: identifies the process and its descendants.
        log_bytes: size of the log at which it is rotated.
        longest_delay_s: longest delay in seconds before a restart.

    """

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        environment: dict[str, str],
        logs: Path,
        mark: str,
        log_bytes: int = LOG_BYTES,
        longest_delay_s: float = LONGEST_DELAY_S,
    ) -> None:
        self.name = name
        self.mark = mark
        self.log = logs / f"{name}.log"
        self.deaths = 0
        self.failures = 0  # deaths in a row without a signal from outside
        self.ready = False
        self.last_death = ""
        self._command = command
        self._environment = {**environment, MARK: mark}
        self._log_bytes = log_bytes
        self._longest_delay_s = longest_delay_s
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._again_at: float | None = None
        self._read_to = 0
        self._shown_at: dict[str, float] = {}
        self._workers: set[int] = set()
        self._fresh: set[int] = set()
        self._workers_look_at = 0.0
        self.last_line = ""
        logs.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.log.rename(self.log.with_suffix(".log.1"))

    @property
    def pid(self) -> int | None:
        """The process id of the latest start."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether the process runs now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process in a process group of its own. Call it from the main thread."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=APPLICATION,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
            )
        self.ready = False
        self._workers, self._fresh = set(), set()
        self._started_at = time.monotonic()
        self._again_at = None

    def watch(self) -> list[str]:
        """Read the log, notice a death, restart when the delay is over; return the lines to show."""
        lines = self._read_log()
        self._rotate()
        if self.alive:
            if time.monotonic() - self._started_at >= STEADY_S:
                self.deaths = self.failures = 0
            return lines + self._lost_workers()
        now = time.monotonic()
        if self._again_at is None:
            assert self._process is not None
            self.deaths += 1
            code = self._process.returncode
            self.failures += -code not in FROM_OUTSIDE
            line = f": {self.last_line}" if self.last_line and -code not in FROM_OUTSIDE else ""
            self.last_death = f"{_ended(code)}{line}"
            self._sweep()
            return [*lines, self._later(now, self.last_death)]
        if now >= self._again_at:
            try:
                self.start()
            except OSError as error:  # a full disk or no memory: both may pass
                self.deaths += 1
                self.last_death = f"cannot start: {error.strerror or error}"
                return [*lines, self._later(now, self.last_death)]
        return lines

    @property
    def trouble(self) -> str | None:
        """Why the process does not run, with its deaths in a row; None while it runs."""
        if not self.deaths or not self.last_death or (self.alive and self.ready):
            return None
        return f"{self.last_death} (death {self.deaths} in a row)"

    def _later(self, now: float, why: str) -> str:
        """Postpone the next start, longer after each death, and return the line to show."""
        delay = min(self._longest_delay_s, 0.25 * 2 ** min(self.deaths - 1, 10))
        self._again_at = now + delay
        return f"{why}: starting again in {delay:.1f} s"

    def restart(self) -> None:
        """Kill the process and start it again; `watch` tries again if it cannot start."""
        self.stop(0)
        with contextlib.suppress(OSError):
            self.start()

    def stop(self, grace_s: float) -> bool:
        """Send SIGTERM, after `grace_s` seconds SIGKILL to all with the mark; return whether it ended in time."""
        process, in_time = self._process, True
        if process is None:
            return True
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                in_time = False
        self._sweep()
        process.wait(5)
        return in_time

    def _sweep(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        sweep(self.mark)

    def _read_log(self) -> list[str]:
        """Return the new log lines worth showing; note `ready` and the last line."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(self._read_to)
            text = log.read()
            whole = text.rfind(b"\n") + 1
            self._read_to += whole
            return [
                line
                for line in map(self._line_to_show, text[:whole].decode("utf-8", errors="replace").splitlines())
                if line
            ]
        return []

    def _rotate(self) -> None:
        """Copy a log of `log_bytes` aside and truncate it; the child goes on appending to the same file.

        A line written in between is lost. On a full disk the log is truncated without a copy.
        """
        if self._read_to < self._log_bytes:
            return
        aside = self.log.with_suffix(".log.1")
        try:
            shutil.copyfile(self.log, aside)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.truncate(self.log, 0)
            self._read_to = 0

    def _line_to_show(self, line: str) -> str | None:
        if not line.strip():
            return None
        self.last_line = line.strip()
        self.ready = self.ready or line == "ready"
        logged = _LOG_LINE.match(line)
        if not logged or not _SHOWN.search(logged[1]):
            return None
        kind, now = re.sub(r"\d+", "#", logged[1]), time.monotonic()
        if now - self._shown_at.get(kind, -REPEAT_S) < REPEAT_S:
            return None
        self._shown_at = {k: at for k, at in self._shown_at.items() if now - at < REPEAT_S} | {kind: now}
        return logged[1]

    def _lost_workers(self) -> list[str]:
        """Return a line for each descendant that was seen twice and has ended."""
        if time.monotonic() < self._workers_look_at:
            return []
        self._workers_look_at = time.monotonic() + WORKERS_LOOK_S
        now = set(marked(self.mark)) - {self.pid or 0}
        lost = self._workers - now
        self._workers, self._fresh = (self._workers | self._fresh) & now, now
        return [f"worker {pid} ended: {self.name} starts another within seconds" for pid in sorted(lost)]


def _ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with {code}"
