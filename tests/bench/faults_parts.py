"""Faults of `make bench-faults` in processes, outboxes and the disk, and what each costs.

Turns a running project with callers beside it into a row for each fault. faults.py calls it; faults_stores.py adds rows for
what the processes share.
"""

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.supervisor.children import marked
from tests.support.disks import filled
from tests.support.running_up import RunningUp, Traffic, until

FULL_S, CALM_S, BACK_S = 15.0, 5.0, 120.0
KILLS = 4
PARTS = ("broker", "consumer", "serving", "scheduler")


@dataclass
class Row:
    """One fault: when it began and ended, the longest time without a prediction, and the line shown."""

    fault: str
    began: float
    ended: float
    seconds: float | None
    line: str


class Faults:
    """A running project, its callers, and the rows measured so far."""

    def __init__(self, up: RunningUp, traffic: Traffic) -> None:
        self.up, self.traffic = up, traffic
        self.rows: list[Row] = []

    def measure(
        self, fault: str, harm: Callable[[], float | None], line: str, recovered: Callable[[], object] = lambda: True
    ) -> None:
        """Do harm, wait until predictions flow and `recovered` holds, and keep the row.

        Args:
            fault: its name.
            harm: returns the time from which on the project may recover, None for the start.
            line: part of the line that names the fault.
            recovered: whether everything is back.

        """
        began = time.monotonic()
        free = harm() or began
        until(recovered, BACK_S)
        there = time.monotonic()  # an answer that was on its way does not count
        back = until(lambda: self.traffic.first("predict", there) is not None, BACK_S)
        time.sleep(CALM_S)
        ended = time.monotonic()
        seconds = None if back is None else self.traffic.longest_gap("predict", free, ended)
        shown = self.up.shown(line, began) or f"(no line with {line!r})"
        self.rows.append(Row(fault, began, ended, seconds, shown))
        print(f"  {fault}: {'not back' if seconds is None else f'{seconds:.1f} s'}: {shown}", flush=True)

    def kill(self, part: str) -> None:
        """SIGKILL a part, and wait for another process in its place."""
        before = self.up.pid(part)

        def harm() -> None:
            os.kill(before, signal.SIGKILL)

        self.measure(f"{part} killed", harm, f"{part:<10} was ended by SIGKILL", lambda: self.up.pid(part) != before)

    def kill_worker(self) -> None:
        """SIGKILL one worker of serving."""
        worker = workers(self.up)[0]

        def harm() -> None:
            os.kill(worker, signal.SIGKILL)

        self.measure("a worker killed", harm, f"worker {worker} ended", lambda: len(workers(self.up)) == 2)

    def kill_while_starting(self) -> None:
        """SIGKILL serving KILLS times, each time as soon as it has been started."""

        def harm() -> float:
            for _ in range(KILLS):
                pid = self.up.pid("serving")
                os.kill(pid, signal.SIGKILL)
                until(lambda pid=pid: self.up.pid("serving") != pid, 30)  # type: ignore[misc]
            return time.monotonic()

        name = f"serving killed {KILLS} times while starting"
        self.measure(name, harm, "serving    was ended by SIGKILL", lambda: len(workers(self.up)) == 2)

    def damage_outbox(self) -> None:
        """Overwrite the first page of every outbox and its WAL, once all is stored, and SIGKILL serving.

        Only then is nothing lost by the damage itself: an event that is nowhere else cannot be read from overwritten pages.
        """
        folder = self.up.settings.path(self.up.settings.serving.outbox)

        def harm() -> float:
            with self.traffic.paused():
                until(lambda: self.up.status().get("not_yet_stored") == 0, 60, 1)
                for pid in (
                    self.up.pid("serving"),
                    *workers(self.up),
                ):  # a worker that ends in order would mend its file
                    os.kill(pid, signal.SIGKILL)
                for file in [*folder.glob("outbox-*.db"), *folder.glob("outbox-*.db-wal")]:
                    with file.open("r+b") as pages:
                        pages.write(b"\xff" * 4096)
                return time.monotonic()

        self.measure("outboxes damaged, serving killed", harm, "set aside as", lambda: len(workers(self.up)) == 2)

    def lose_registry(self) -> None:
        """Delete the registry, and restore its backup after FULL_S seconds."""
        file = registry_file(self.up)

        def harm() -> float:
            backup = file.with_name("backup.db")
            with (
                contextlib.closing(sqlite3.connect(file)) as here,
                contextlib.closing(sqlite3.connect(backup)) as there,
            ):
                here.backup(there)
            for end in ("", "-wal", "-shm"):
                file.with_name(f"{file.name}{end}").unlink(missing_ok=True)
            time.sleep(FULL_S)
            backup.rename(file)
            return time.monotonic() - FULL_S

        self.measure("registry lost, restored", harm, "is missing: restore the registry")

    def fill_disk(self, parts: tuple[str, ...]) -> None:
        """Fill the disk, kill parts, read what `status` says, and free the disk after FULL_S seconds."""
        troubles: dict[str, str] = {}

        def harm() -> float:
            with filled(self.up.settings.root):
                time.sleep(CALM_S)
                for part in parts:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(workers(self.up)[0] if part == "worker" else self.up.pid(part), signal.SIGKILL)
                time.sleep(FULL_S)
                troubles.update(self.up.status().get("trouble") or {})
            return time.monotonic()

        name = f"disk full, {' and '.join(parts) or 'nothing'} killed"
        line = {(): "MB are kept for feedback", ("worker",): "ended: serving starts another"}.get(
            parts, "was ended by SIGKILL"
        )
        self.measure(name, harm, line, self.all_alive)
        print(f"    status while it was full: {troubles}", flush=True)

    def all_alive(self) -> bool:
        """Return whether every part and both workers run."""
        return all(psutil.pid_exists(self.up.pid(part)) for part in PARTS) and len(workers(self.up)) == 2


def workers(up: RunningUp) -> list[int]:
    """Process ids of serving's workers."""
    mark = f"{up.settings.root.absolute()}:serving"
    return sorted(pid for pid in marked(mark) if "_bentoml_impl.worker" in " ".join(_command(pid)))


def _command(pid: int) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(pid).cmdline())
    return []


def registry_file(up: RunningUp) -> Path:
    """Return the file of an SQLite registry."""
    return Path(up.settings.registry_url.removeprefix("sqlite:///"))
