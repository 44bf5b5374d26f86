"""`make bench-faults`: what a fault costs a whole `ratchet up`, and what it shows.

Turns a project with callers beside it into a row for each fault: the requests that failed, the seconds until predictions flow
again, the feedback that was accepted and lost, and the line that names the fault. The disk is a small tmpfs, which only root can
mount; what cannot be had is left out with a line. Writes bench-faults.json.
`python -m tests.bench.faults GROUP...` measures some groups: kills, outbox, registry, artefacts and disk on one `up`,
postgres on another.
"""

import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import faults_stores
from tests.bench.faults_parts import PARTS, Faults
from tests.bench.report import Figure, write
from tests.support.disks import small_disk
from tests.support.running_up import RunningUp, Traffic, stored_ids, tiny_project, until

DISK_KB, RESERVE_MB = 160_000, 16
GROUPS = ("kills", "outbox", "registry", "artefacts", "disk", "postgres")


def harm_files(faults: Faults, groups: set[str], *, small: bool) -> None:
    """Measure the groups of one `up` whose registry is a file."""
    if "kills" in groups:
        for part in PARTS:
            faults.kill(part)
        faults.kill_worker()
        faults.kill_while_starting()
    if "outbox" in groups:
        faults.damage_outbox()
    if "registry" in groups:
        faults_stores.lock_registry(faults)
        if small:
            faults_stores.make_registry_read_only(faults)
        faults.lose_registry()
    if "artefacts" in groups:
        faults_stores.lose_artefacts(faults)
    if small and "disk" in groups:
        for parts in ((), ("worker",), PARTS):
            faults.fill_disk(parts)
    if not small and groups & {"registry", "disk"}:
        print("  a full disk and a read-only registry: not measured, nothing can be mounted here")


def on_files(scratch: Path, groups: set[str]) -> list[Figure]:
    """Figures of the faults of processes, files and the disk."""
    with small_disk(scratch / "disk", DISK_KB) as small:
        # In a folder of its own, which can be mounted read-only without the rest.
        settings = tiny_project(
            scratch / "disk/p",
            scratch,
            registry={"url": "sqlite:///registry/registry.db"},
            training={"reserve_mb": RESERVE_MB},
        )
        return harmed(RunningUp(settings), lambda faults: harm_files(faults, groups, small=small))


def on_postgres(scratch: Path) -> list[Figure]:
    """Figures of a registry in Postgres that is killed."""
    with faults_stores.postgres(scratch / "postgres") as server:
        if server is None:
            print("  Postgres: not measured, its programs are missing")
            return []
        up = RunningUp(tiny_project(scratch / "p", scratch, registry={"url": server.url}))
        return harmed(up, lambda faults: faults_stores.kill_postgres(faults, server))


def harmed(up: RunningUp, harm: Callable[[Faults], None]) -> list[Figure]:
    """Start `up` with callers beside it, do harm, stop it, and return the figures of what became of their requests."""
    faults = Faults(up, Traffic(up))
    up.start()
    try:
        up.ready(600)
        with faults.traffic.running():
            harm(faults)
        stored = until(lambda: up.status().get("not_yet_stored") == 0, 120, 1)
        print(f"  everything stored after {stored} s; {dict(faults.traffic.statuses)}")
    finally:
        print(f"  `up` ended with {up.stop()}")
    return figures(faults)


def figures(faults: Faults) -> list[Figure]:
    """Print the table; figures of each fault: seconds, and feedback lost in its time."""
    predictions, feedback, effective = stored_ids(faults.up.settings)
    table, found = Table(title="faults"), []
    for column in (
        "fault",
        "requests failed",
        "seconds until predictions flow",
        "feedback lost",
        "prediction events lost",
        "line shown",
    ):
        table.add_column(column)
    for row in faults.rows:
        within = {
            kind: [identity for at, identity in ids if row.began <= at <= row.ended]
            for kind, ids in faults.traffic.when.items()
        }
        lost = len(set(within["feedback"]) - feedback.keys())
        dropped = len(set(within["predict"]) - predictions.keys())
        shown = "not back" if row.seconds is None else f"{row.seconds:.1f}"
        failed = [what for at, what in faults.traffic.failed if row.began <= at <= row.ended]
        done = sum(row.began <= at <= row.ended for at, _ in faults.traffic.answered)
        table.add_row(
            row.fault,
            f"{len(failed)} of {done + len(failed)} {', '.join(sorted(set(failed)))}".strip(),
            shown,
            f"{lost} of {len(within['feedback'])}",
            f"{dropped} of {len(within['predict'])}",
            row.line,
        )
        n = len(within["feedback"])
        found += [
            Figure(figure=f"{row.fault}: seconds until predictions flow", value=row.seconds, op="<=", target=30, n=1),
            Figure(figure=f"{row.fault}: feedback lost", value=lost, op="<=", target=0, n=n),
        ]
    Console(width=200).print(table)
    twice = len(effective) - len(set(effective))
    return [*found, Figure(figure="feedback counted twice", value=twice, op="<=", target=0, n=len(effective))]


def main() -> None:
    """Measure the faults of some groups, or all, then compare what was accepted with the log."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    groups = set(sys.argv[1:]) or set(GROUPS)
    if unknown := groups - set(GROUPS):
        sys.exit(f"{', '.join(sorted(unknown))}: groups are {', '.join(GROUPS)}")
    found: list[Figure] = []
    with contextlib.ExitStack() as stack:

        def scratch() -> Path:
            folder = Path(tempfile.mkdtemp(prefix="ratchet-faults-"))
            folder.chmod(0o755)  # Postgres runs as another user
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            return folder

        if groups - {"postgres"}:
            found += on_files(scratch(), groups)
            write("faults", found)
        if "postgres" in groups:
            found += on_postgres(scratch())
            write("faults", found)


if __name__ == "__main__":
    main()
