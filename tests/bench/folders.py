"""Twenty folder names through the whole walk: `init`, `up`, predictions, corrections, a round that promotes.

`make folders` prints one line a name and a count. It trains a tiny model with random weights, so a name takes about a minute.
Names that Delta Lake cannot have in a path are refused by `init`; tests/test_folder_names.py holds that.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from schemas.settings import load_settings
from services.projects import create_project
from serving.http.access import read_keys
from serving.registry.registry import Registry
from tests.support.fakes import free_port, tiny_base_model, toy_rows, wait_until, write_rows

NAMES = [
    "my shop",
    "größe",
    "a#b",
    "a?b",
    "a%b",
    "a{b}",
    "a[b]",
    "a*b",
    "a'b",
    'a"b',
    "a&b;c",
    "a=b,c",
    "a$b",
    "-dash",
    "~tilde",
    "a..b",
    "gro\u0308ße",
    "表格",
    "😀",
    "x" * 120,
]
FEEDBACK = 45
REPOSITORY = Path(__file__).parents[2]


def walk(root: Path, name: str, base: Path) -> str:
    """Return the state of the round that feedback triggered in a project folder of this name."""
    project = root / name / "p"
    project.parent.mkdir()
    overrides: dict[str, dict[str, object]] = {
        "serving": {"port": free_port(), "workers": 1},
        "model": {"max_length": 32, "name": "shop"},
        "triggers": {"min_feedback": FEEDBACK - 5, "tick_seconds": 0.5},
        "training": {"epochs": 1, "threads": 2},
    }
    seed = write_rows(root / name / "seed.csv", toy_rows(6, seed=1))
    reference = write_rows(root / name / "reference.csv", toy_rows(240, seed=2))
    create_project(project, seed=seed, reference=reference, base_model=str(base), overrides=overrides)
    config = project / "ratchet.toml"
    settings = load_settings(config.read_bytes(), {}, root=project)
    command = [sys.executable, "-m", "services.cli", "up", "-c", str(config)]
    up = subprocess.Popen(
        command, cwd=REPOSITORY, env=dict(os.environ), stdout=subprocess.DEVNULL, start_new_session=True
    )
    registry = Registry(settings.registry_url, "shop")
    try:
        wait_until(lambda: settings.path("state/up.json").exists() or up.poll() is not None, timeout_s=180)
        headers = {"Authorization": f"Bearer {read_keys(project / 'keys.env').api_key}"}
        url = f"http://127.0.0.1:{settings.serving.port}"
        with httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False) as client:
            for n, (text, label) in enumerate(toy_rows(FEEDBACK, seed=3)):
                answer = client.post("/predict", json={"items": [{"text": text}], "user": f"u{n % 9}"})
                body = {"kind": "correction", "value": label, "user": f"u{n % 9}"}
                body["prediction_id"] = answer.json()[0]["prediction_id"]
                client.post("/feedback", json=body).raise_for_status()
        ends = ("promoted", "rejected", "insufficient evidence", "failed", "skipped")
        wait_until(
            lambda: len(registry.rounds()) > 1 and registry.rounds()[0].state in ends, timeout_s=180, every_s=0.5
        )
        return str(registry.rounds()[0].state)
    finally:
        registry.close()
        up.send_signal(signal.SIGTERM)
        up.wait(90)


def main() -> None:
    """Walk every name and print what became of its round."""
    root = Path(tempfile.mkdtemp(prefix="ratchet-folders-"))
    try:
        base, promoted = tiny_base_model(root / "base"), 0
        for name in NAMES:
            began = time.monotonic()
            try:
                state = walk(root, name, base)
            except Exception as error:
                state = f"{type(error).__name__}: {error}"
            promoted += state == "promoted"
            print(f"{name[:24]!r:30} {state}  {time.monotonic() - began:.0f} s", flush=True)
        print(f"{promoted} of {len(NAMES)} promoted")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
