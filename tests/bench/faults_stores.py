"""Faults of `make bench-faults` in what the processes share: the registry and the artefact store.

Turns a running project with callers beside it into rows of the table. faults.py calls it. A read-only mount needs root, and
Postgres its programs. The clock is not set here, because it is everybody's: tests/test_clocks.py passes clocks in.
"""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.faults_parts import Faults, registry_file, workers
from tests.support.disks import read_only
from tests.support.fakes import free_port
from tests.support.running_up import until

LOCKED_S, GONE_S, POSTGRES_S = 60.0, 15.0, 15.0


# --- the registry as an SQLite file ------------------------------------------------------------------------------------


def lock_registry(faults: Faults) -> None:
    """Hold a write transaction on the registry for LOCKED_S seconds: longer than anybody waits for a lock."""
    file = registry_file(faults.up)

    def harm() -> None:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as locked:
            locked.execute("BEGIN EXCLUSIVE")
            time.sleep(LOCKED_S)
            locked.execute("ROLLBACK")

    faults.measure(f"registry locked {LOCKED_S:.0f} s", harm, "locked")


def make_registry_read_only(faults: Faults) -> None:
    """Mount the registry's folder read-only and SIGKILL all that has it open, for GONE_S seconds."""
    folder, before = registry_file(faults.up).parent, workers(faults.up)

    def harm() -> None:
        with read_only(folder):
            for pid in (faults.up.pid("consumer"), faults.up.pid("scheduler"), before[0]):
                os.kill(pid, signal.SIGKILL)
            time.sleep(GONE_S)

    faults.measure("registry read-only, a worker, consumer and scheduler killed", harm, "registry", faults.all_alive)


# --- the artefact store --------------------------------------------------------------------------------------------------


def lose_artefacts(faults: Faults) -> None:
    """Move the artefact store away for GONE_S seconds, and SIGKILL a worker meanwhile."""
    store = faults.up.settings.path(faults.up.settings.artifacts.url)
    worker = workers(faults.up)[0]

    def harm() -> None:
        away = store.with_name("artifacts-away")
        store.rename(away)
        os.kill(worker, signal.SIGKILL)
        time.sleep(GONE_S)
        shutil.rmtree(store, ignore_errors=True)  # somebody may have made a new one
        away.rename(store)

    faults.measure(
        "artefact store gone, a worker killed", harm, f"worker {worker} ended", lambda: len(workers(faults.up)) == 2
    )


# --- Postgres --------------------------------------------------------------------------------------------------------------


class Postgres:
    """A Postgres server of this benchmark alone, in a folder, run by the user `postgres` if this is root."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder, self._port = programs, folder, free_port()
        self._as = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        folder.mkdir()
        if self._as:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust")

    @property
    def url(self) -> str:
        """Its SQLAlchemy URL."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers; right after a kill its children may still hold its memory."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        until(lambda: self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", "-o", options, "start") == 0, 30, 0.5)

    def kill(self) -> None:
        """SIGKILL it."""
        os.kill(int((self._folder / "data/postmaster.pid").read_text(encoding="utf-8").split()[0]), signal.SIGKILL)

    def _run(self, program: str, *arguments: str) -> int:
        log = (self._folder / "log").open("ab")
        with log:
            return subprocess.run(
                [*self._as, str(self._programs / program), *arguments],
                check=False,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
            ).returncode


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Postgres | None]:
    """A running server; None where its programs are missing."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        yield None
        return
    server = Postgres(programs[-1].parent, folder)
    server.start()
    try:
        yield server
    finally:
        with contextlib.suppress(OSError):
            server.kill()


def kill_postgres(faults: Faults, server: Postgres) -> None:
    """SIGKILL Postgres, which holds the registry, and start it again after POSTGRES_S seconds."""

    def harm() -> None:
        server.kill()
        time.sleep(POSTGRES_S)
        server.start()

    faults.measure(f"Postgres killed, back after {POSTGRES_S:.0f} s", harm, "registry")
