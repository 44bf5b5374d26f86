"""Supervised children: one process each, its log, and when it may start again.

Turns a command into a process that is started, watched, read and stopped. The supervisor (up.py) holds one `Child` per
part. It deliberately does not know what a child does, nor in which order children stop.

Every child carries a mark in its environment, which its own children inherit: BentoML's workers live in sessions of
their own, and what is left of a dead parent would go on holding the port. The mark is looked up in /proc, so on other
systems than Linux only the child's own process group is swept.
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

from services.rounds.executor import MARK, REPOSITORY, UTF8

LONGEST_DELAY_S = 5.0
STEADY_S = 30.0  # a child that lived so long starts its delays anew
REPEAT_S = 30.0  # seconds before a line that differs in its numbers alone is shown again
WORKERS_LOOK_S = 2.0
# Signals that somebody else sends: a person, the kernel out of memory, a service manager. Not what bad settings end in.
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
LOG_BYTES = 10 * 10**6  # of a log before it is moved aside; two of them are kept, so a child's logs take 20 MB

_OURS = re.compile(r"^\d{4}-\S+ \S+ (?:\d+ )?ratchet\.\w+ (.*)$")
_WORTH = re.compile(
    r"^round |event log has lost|trying again|tries again|refused|messages to |^serving |dropped|failed|cannot"
)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: after a fork it is too late for a loader


def die_with_parent() -> None:
    """In a child, before its program runs. SIGTERM stops it, whatever `up` ignores; Linux: also when its starter ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)


def marked(mark: str) -> list[int]:
    """Ids of this machine's living processes that carry a mark; none where there is no /proc."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def sweep(mark: str) -> int:
    """Kill every process that carries a mark; how many there were."""
    found = marked(mark)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


class Child:
    """One supervised process.

    Args:
        name: what the supervisor's lines and the log file are called.
        command: its command line.
        environment: its environment, without the mark.
        logs: folder of its log, `<name>.log`; what came before LOG_BYTES, or the last start, is kept as `<name>.log.1`.
        mark: what its processes, and theirs, are found by.

    """

    def __init__(self, name: str, command: list[str], *, environment: dict[str, str], logs: Path, mark: str) -> None:
        self.name = name
        self.mark = mark
        self.log = logs / f"{name}.log"
        self.deaths = 0
        self.failures = 0  # deaths in a row that nobody outside it caused
        self.ready = False
        self.last_death = ""
        self._command = command
        self._environment = {**environment, **UTF8, MARK: mark}
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
        """Whether it runs now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, from the main thread, in a process group of its own."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=REPOSITORY,
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
        """One look: read its log, notice a death, start it again when its delay is over. Lines to show."""
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
            said = f": {self.last_line}" if self.last_line and -code not in FROM_OUTSIDE else ""
            self.last_death = f"{_ended(code)}{said}"
            self._sweep()
            return [*lines, self._later(now, self.last_death)]
        if now >= self._again_at:
            try:
                self.start()
            except OSError as error:  # no room for its log, no memory for a process: both may come back
                self.deaths += 1
                self.last_death = f"cannot start: {error.strerror or error}"
                return [*lines, self._later(now, self.last_death)]
        return lines

    @property
    def trouble(self) -> str | None:
        """Why it is not running now, with how often it died in a row; None while it runs, or has just been started again."""
        if not self.deaths or not self.last_death or (self.alive and self.ready):
            return None
        return f"{self.last_death} (death {self.deaths} in a row)"

    def _later(self, now: float, why: str) -> str:
        """Put off the next start, for longer after each death; the line that says so."""
        delay = min(LONGEST_DELAY_S, 0.25 * 2 ** min(self.deaths - 1, 10))
        self._again_at = now + delay
        return f"{why}: starting again in {delay:.1f} s"

    def stop(self, grace_s: float) -> bool:
        """SIGTERM, then after `grace_s` seconds SIGKILL for it and all that carries its mark. Whether it went by itself."""
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
        """What it wrote since the last look that is worth showing; notes `ready` and the last line."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(self._read_to)
            text = log.read()
            whole = text.rfind(b"\n") + 1
            self._read_to += whole
            return [
                line for line in map(self._worth, text[:whole].decode("utf-8", errors="replace").splitlines()) if line
            ]
        return []

    def _rotate(self) -> None:
        """Copy a log that has grown large aside and empty it: the child writes on, for it appends to the same file.

        A line that it writes in between is lost. On a full disk the log is emptied without a copy.
        """
        if self._read_to < LOG_BYTES:
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

    def _worth(self, line: str) -> str | None:
        if not line.strip():
            return None
        self.last_line = line.strip()
        self.ready = self.ready or line == "ready"
        ours = _OURS.match(line)
        if not ours or not _WORTH.search(ours[1]):
            return None
        kind, now = re.sub(r"\d+", "#", ours[1]), time.monotonic()
        if now - self._shown_at.get(kind, -REPEAT_S) < REPEAT_S:
            return None
        self._shown_at = {k: at for k, at in self._shown_at.items() if now - at < REPEAT_S} | {kind: now}
        return ours[1]

    def _lost_workers(self) -> list[str]:
        """Lines on processes below the child that were there at two looks and are gone."""
        if time.monotonic() < self._workers_look_at:
            return []
        self._workers_look_at = time.monotonic() + WORKERS_LOOK_S
        now = set(marked(self.mark)) - {self.pid or 0}
        lost = self._workers - now
        self._workers, self._fresh = (self._workers | self._fresh) & now, now
        return [f"its worker {pid} ended: it starts another within some seconds" for pid in sorted(lost)]


def _ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with {code}"
