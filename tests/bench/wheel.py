"""`make bench-wheel`: both wheels in bare virtual environments, from `pip install` to a finished demo and to a first prediction.

Turns the committed tree into two wheels, each into an empty environment with an empty cache, and runs their commands in an empty
folder whose environment has a PATH and a HOME alone. Packages come from the indexes that pip is configured with; the table says
which build of torch that gave. Serving alone serves the project that the demo left. `--uv` installs with uv. Writes
bench-wheel.json.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from uv import find_uv_bin

from deploy import install
from serving.http.access import read_keys
from tests.bench.report import Figure, write
from tests.support.fakes import REPOSITORY, free_port, wait_until

PROJECTS = {"all": REPOSITORY, "serving alone": REPOSITORY / "deploy/package_serving"}


def main() -> None:
    """Install both, run both, print the figures and write them."""
    parser = argparse.ArgumentParser(description="Measure both wheels from nothing to their first result.")
    parser.add_argument("--uv", action="store_true", help="install with uv instead of pip")
    with_uv = parser.parse_args().uv
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bare = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
        figures, project = [], folder / "bbc"
        for name, source in PROJECTS.items():
            venv = folder / name.replace(" ", "-")
            wheel = built(source, folder / f"wheel-{venv.name}")
            install_s = seconds(lambda venv=venv, wheel=wheel: installed(venv, wheel, folder, with_uv=with_uv))  # type: ignore[misc]
            size = megabytes(venv)
            run = demo if name == "all" else first_prediction
            run_s = seconds(lambda run=run, venv=venv: run(venv, project, bare))  # type: ignore[misc]
            last = "a finished demo" if name == "all" else "a first prediction"
            figures += [
                Figure(figure=f"{name}: seconds to install", value=install_s, op="<=", target=300, n=1),
                Figure(figure=f"{name}: seconds from there to {last}", value=run_s, op="<=", target=300, n=1),
                Figure(figure=f"{name}: MB installed, wheel of {wheel.stat().st_size / 1e6:.1f} MB", value=size,
                       op="<=", target=7000 if name == "all" else 500, n=1),
            ]  # fmt: skip
            print(
                f"{name}: {install_s:.0f} s, {size:.0f} MB, {last} after {run_s:.0f} s, torch {torch_of(venv)}",
                flush=True,
            )
        write("wheel", figures)


def built(source: Path, folder: Path) -> Path:
    """Return the wheel of a project."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def seconds(step: Callable[[], None]) -> float:
    """Return how long a step takes."""
    began = time.monotonic()
    step()
    return time.monotonic() - began


def installed(venv: Path, wheel: Path, folder: Path, *, with_uv: bool) -> None:
    """Make an environment and install a wheel in it, with an empty cache."""
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python, caches = str(venv / "bin/python"), folder / "caches"
    environment = {**os.environ, "PIP_CACHE_DIR": str(caches), "UV_CACHE_DIR": str(caches)}
    command = [python, "-m", "pip", "install", "--quiet", str(wheel)]
    if with_uv:
        environment = install.uv_environment(install.pip_configuration(python), environment)
        command = [find_uv_bin(), "pip", "install", "--quiet", "--python", python, str(wheel)]
    subprocess.run(command, check=True, env=environment)
    shutil.rmtree(caches, ignore_errors=True)


def megabytes(folder: Path) -> float:
    """Return the disk that a folder takes."""
    done = subprocess.run(["du", "-sk", str(folder)], check=True, capture_output=True)
    return int(done.stdout.split()[0]) / 1e3


def torch_of(venv: Path) -> str:
    """Return the version of torch in an environment, or "none"."""
    found = [
        path.name.removesuffix(".dist-info").split("-")[1]
        for path in venv.glob("lib/*/site-packages/torch-*.dist-info")
    ]
    return found[0] if found else "none"


def demo(venv: Path, project: Path, environment: dict[str, str]) -> None:
    """Run the demo in an empty folder; it leaves its project."""
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    command = [str(venv / "bin/ratchet"), "demo", "--keep", str(project), "--out", "report.json"]
    subprocess.run(command, cwd=elsewhere, env=environment, check=True, stdin=subprocess.DEVNULL)
    report = json.loads((elsewhere / "report.json").read_text(encoding="utf-8"))
    print(f"demo: {report['seconds']} s, {report['events_stored']} events stored")


def first_prediction(venv: Path, project: Path, environment: dict[str, str]) -> None:
    """Serve the demo's champion until it has answered; no broker is there, so events wait in the outbox."""
    port = free_port()
    kafka = {"RATCHET_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}", "RATCHET_SERVING__PORT": str(port)}
    command = [str(venv / "bin/ratchet-serving"), "-c", str(project / "ratchet.toml")]
    key = read_keys(project / "keys.env").api_key

    def answered() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        with contextlib.suppress(httpx.HTTPError):
            headers = {"Authorization": f"Bearer {key}"}
            body = {"items": [{"text": "The striker scored twice in the second half."}]}
            answer = httpx.post(f"http://127.0.0.1:{port}/predict", json=body, headers=headers, trust_env=False)
            return answer.status_code == 200 and bool(answer.json()[0]["label"])
        return False

    log = project.parent / "serving.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=project.parent, env=environment | kafka, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        wait_until(answered, timeout_s=120, every_s=0.1)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


if __name__ == "__main__":
    main()
