"""The demo's `ratchet up`: start it on the demo's project, wait for it, leave it open, stop it.

Turns a project's folder into a running `ratchet up`. walk.py calls it; it knows nothing of articles and traffic.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from schemas.settings import Settings
from services.console.people import operator_key
from services.demo.articles import DemoError
from services.projects import STATE
from serving.process.start import APPLICATION

# Two minutes are usual. A machine with other work took more than a quarter of an hour for the first champion.
ROUND_LIMIT_S = 3600
STOP_S = 90

console = Console(highlight=False)


def stop_on_sigterm() -> None:
    """Let SIGTERM end the demo as Ctrl-C does, so that its `ratchet up` ends too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def start_up(folder: Path) -> subprocess.Popen[bytes]:
    """Start `ratchet up` on a project, without this process's settings from the environment."""
    command = [sys.executable, "-m", "services.cli.main", "up", "-c", str((folder / "ratchet.toml").absolute())]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RATCHET_")}
    return subprocess.Popen(command, cwd=APPLICATION, env=environment, start_new_session=True)


def ready(settings: Settings, up: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return the state of `ratchet up` once it is ready. Raises DemoError."""
    path = settings.path(STATE)
    wait_for(path.exists, up, ROUND_LIMIT_S, "`ratchet up` did not get ready")
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def leave_open(settings: Settings, folder: Path) -> None:
    """Run `ratchet up` on the finished walk, print the console's address and key, and wait for Ctrl-C. Raises DemoError."""
    up = start_up(folder)
    try:
        if address := ready(settings, up).get("console"):
            key = operator_key(settings.path(settings.access.keys))
            console.print(f"[bold]{address}[/bold]  sign in with {key}; Ctrl-C stops", soft_wrap=True)
        else:
            console.print("the console did not start: see the lines above; Ctrl-C stops")
        console.file.flush()  # into a pipe too, before the long wait
        up.wait()
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        stop(up)


def stop(up: subprocess.Popen[bytes]) -> None:
    """Stop `ratchet up` unless it has ended."""
    if up.poll() is None:
        up.send_signal(signal.SIGTERM)
        up.wait(STOP_S)


def check_alive(up: subprocess.Popen[bytes]) -> None:
    """Raise DemoError if `ratchet up` has ended."""
    if up.poll() is not None:
        raise DemoError(f"`ratchet up` ended with {up.returncode}")


def wait_for(condition: Callable[[], bool], up: subprocess.Popen[bytes], seconds: float, otherwise: str) -> None:
    """Wait until a condition holds. Raises DemoError with `otherwise` when the time is over, or if `ratchet up` ends."""
    deadline = time.monotonic() + seconds
    while not condition():
        check_alive(up)
        if time.monotonic() > deadline:
            raise DemoError(f"{otherwise} within {seconds:.0f} s")
        time.sleep(0.3)
