"""`make install` with uv beside pip alone: seconds with empty caches, and the disk that each takes.

Each way gets its own copy of the committed tree, its own empty cache, and the same package index. `--public` removes every
setting of pip and uv from the environment, as on a machine that nobody has prepared: the packages then come from the
public index, torch's CUDA build included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench.report import Figure, write

ROOT = Path(__file__).resolve().parents[2]
# Settings of how to reach an index, not of which index to use.
KEPT = ("PATH", "HOME", "LANG", "SSL_CERT_FILE", "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "HTTPS_PROXY", "https_proxy")

Way = Callable[[Path], list[list[str]]]


def main() -> None:
    """Install twice, print the table and write bench-install.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--public", action="store_true", help="without any configuration of pip and uv")
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    environment = public_environment() if arguments.public else dict(os.environ)
    uv, pip, sizes = [], [], (0.0, 0.0)
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as folder:
        for run in range(arguments.runs):
            seconds, uv_size = timed_install(Path(folder) / f"uv{run}", with_uv, environment)
            uv.append(seconds)
            seconds, pip_size = timed_install(Path(folder) / f"pip{run}", with_pip, environment)
            pip.append(seconds)
            sizes = (uv_size, pip_size)
    uv_s, pip_s = sorted(uv)[len(uv) // 2], sorted(pip)[len(pip) // 2]
    write(
        "install",
        [
            Figure(figure="seconds over pip's, empty caches", value=uv_s / pip_s, op="<=", target=0.25, n=len(uv)),
            Figure(
                figure="seconds with uv, beside pip", value=uv_s, op="<=", target=pip_s / 4, n=len(uv), baseline=pip_s
            ),
            Figure(figure="GB of .venv, beside pip's", value=sizes[0], op="<=", target=7.0, n=1, baseline=sizes[1]),
        ],
    )


def public_environment() -> dict[str, str]:
    """Return this environment without any setting that chooses an index."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1"}


def timed_install(folder: Path, way: Way, environment: Mapping[str, str]) -> tuple[float, float]:
    """Copy the committed tree to `folder`, install it there, and remove it. Return seconds and the gigabytes of `.venv`."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    caches = {"UV_CACHE_DIR": str(folder / "cache-uv"), "PIP_CACHE_DIR": str(folder / "cache-pip")}
    started = time.monotonic()
    for command in way(folder):
        print("$", *command, flush=True)
        subprocess.run(command, check=True, cwd=folder, env={**environment, **caches}, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    shutil.rmtree(folder / "cache-uv", ignore_errors=True)
    disk = subprocess.run(["du", "-sk", str(folder / ".venv")], check=True, capture_output=True)
    shutil.rmtree(folder)
    return seconds, int(disk.stdout.split()[0]) / 1e6


def with_uv(folder: Path) -> list[list[str]]:
    """Return the command of `make install`."""
    return [[sys.executable, str(folder / "deploy/install.py")]]


def with_pip(folder: Path) -> list[list[str]]:
    """Return the commands that docs/install.md names for pip alone."""
    pip = [str(folder / ".venv/bin/python"), "-m", "pip", "install", "--quiet"]
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return [
        [sys.executable, "-m", "venv", str(folder / ".venv")],
        [*pip, "-r", "requirements.lock"],
        [*pip, "--no-deps", *project["project"]["optional-dependencies"]["weights"]],
    ]


if __name__ == "__main__":
    main()
