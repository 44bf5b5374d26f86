"""`make bench-server`: a server from nothing to a promoted round, as plain processes on Kafka, Postgres, Redis and S3.

Turns the compose file's commands into seconds a step, and compares what was accepted with the event log. `python -m
tests.bench.server --from REF` starts with that commit's code and a project that it made, and upgrades in the middle, under
callers; 8834360 is the first commit that has these commands. Needs RATCHET_TEST_POSTGRES, RATCHET_TEST_REDIS
and ../shared/kafka. Writes bench-server.json.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from schemas.records import FINAL_STATES, RoundState
from schemas.settings import Settings, load_settings
from serving.registry.registry import Registry
from tests.bench.report import Figure, write
from tests.support.fakes import REPOSITORY, tiny_base_model, wait_until
from tests.support.running_up import Traffic, stored_ids
from tests.support.server_path import ONE_SHOT, PARTS, Server, engines

ROUND_S = 600.0


def main() -> None:
    """Walk the path, print the steps and write the figures."""
    parser = argparse.ArgumentParser(description="Measure a server from nothing to a promoted round.")
    parser.add_argument("--from", dest="before", metavar="REF", help="start with the code of this commit, then upgrade")
    before = parser.parse_args().before
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        code = stack.enter_context(code_of(before, folder / "before")) if before else REPOSITORY
        config = made_by(code, folder / "shop", tiny_base_model(folder / "base"))
        variables = stack.enter_context(engines(folder))
        variables["RATCHET_TRAINING__NICE"] = "0"  # other work of the machine would stop a niced round
        os.environ.update(variables)
        server = Server(config, variables, folder / "logs", code)
        stack.callback(server.stop)
        settings = load_settings(config.read_bytes(), variables, root=config.parent)
        registry = stack.enter_context(contextlib.closing(Registry(settings.registry_url, settings.model.name)))
        figures = walk(server, settings, registry, upgrade=before is not None)
    table = Table("step", "seconds")
    for name, seconds in server.seconds.items():
        table.add_row(name, f"{seconds:.1f}")
    for name, size in server.memory.items():
        table.add_row(f"memory of {name}, MB", f"{size:.0f}")
    Console().print(table)
    write("server", figures)


def walk(server: Server, settings: Settings, registry: Registry, *, upgrade: bool) -> list[Figure]:
    """Set up, serve, feed until a round is promoted, upgrade if wanted, stop; return the figures."""
    for name in ONE_SHOT:
        server.run(name)
    for name in PARTS:
        server.start(name)
    traffic = Traffic(server, callers=2, pause_s=0.05)
    with traffic.running():
        began = time.monotonic()
        wait_until(lambda: _ended(registry), timeout_s=ROUND_S, every_s=0.5)
        promoted = registry.rounds()[0].state is RoundState.PROMOTED
        server.seconds["first prediction to a promoted round"] = time.monotonic() - began
        if upgrade:
            began, server.code = time.monotonic(), REPOSITORY
            server.run("migrate")
            for name in ("consumer", "scheduler", "serving"):
                server.stop(name)
                server.start(name)
            server.seconds["upgrade: migrate, restart each"] = time.monotonic() - began
            server.seconds["of these without a prediction"] = traffic.longest_gap("predict", began, time.monotonic())
            time.sleep(10)  # callers go on with the new release
    server.memory = {name: server.megabytes(name) for name in PARTS}
    server.stop("serving")
    wait_until(lambda: not _missing(settings, traffic), timeout_s=120, every_s=2)
    predictions, feedback, _ = stored_ids(settings)
    lost = len(traffic.predicted - predictions.keys()), len(traffic.accepted - feedback.keys())
    twice = sum(times > 1 for times in feedback.values())
    return [
        Figure(figure="rounds promoted", value=float(promoted), op=">=", target=1, n=1),
        Figure(figure="feedback accepted and lost, or stored twice", value=lost[1] + twice, op="<=", target=0,
               n=len(traffic.accepted)),
        Figure(figure="predictions answered and lost", value=lost[0], op="<=", target=0, n=len(traffic.predicted)),
        Figure(figure="seconds from nothing to a promoted round", value=sum(server.seconds[name] for name in (
            *ONE_SHOT, *PARTS, "first prediction to a promoted round")), op="<=", target=600, n=1, goal=True),
    ]  # fmt: skip


def _missing(settings: Settings, traffic: Traffic) -> bool:
    predictions, feedback, _ = stored_ids(settings)
    return bool(traffic.accepted - feedback.keys() or traffic.predicted - predictions.keys())


def _ended(registry: Registry) -> bool:
    rounds = registry.rounds()
    return len(rounds) > 1 and rounds[0].state in FINAL_STATES


def made_by(code: Path, project: Path, base: Path) -> Path:
    """Make a project with the code of a folder, as users of that release did; return its settings file."""
    make = "import sys; from pathlib import Path; from tests.support.server_path import make_project"
    command = [
        sys.executable,
        "-c",
        f"{make}; make_project(Path(sys.argv[1]), Path(sys.argv[2]))",
        str(project),
        str(base),
    ]
    subprocess.run(command, cwd=code, check=True)
    return project / "ratchet.toml"


@contextlib.contextmanager
def code_of(reference: str, folder: Path) -> Iterator[Path]:
    """Check out a commit in `folder` until the block ends."""
    subprocess.run(
        ["git", "worktree", "add", "--detach", "--quiet", str(folder), reference], cwd=REPOSITORY, check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    main()
