"""Twenty folder names and two locales through the whole walk: `init`, `up`, predictions, corrections, a round that promotes.

`make folders` prints one line a walk and a count. It trains a tiny model with random weights, so a walk takes about a minute.
`make folders ONLY=locales` walks in the two locales alone, whose encodings are not UTF-8; texts and labels are not ASCII there.
Names that Delta Lake cannot have in a path are refused by `init`; tests/test_folder_names.py holds that.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
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
LOCALES = {"zh_CN.GB18030": ("zh_CN", "GB18030"), "en_US.ISO-8859-1": ("en_US", "ISO-8859-1")}
SPELLED = {"football": "fußball", "money": "钱", "cooking": "cuisine naïve"}
FEEDBACK = 45
REPOSITORY = Path(__file__).parents[2]


Rows = list[tuple[str, str]]


def spelled(rows: Rows) -> Rows:
    """Return the rows with a label and a word in each text that are not ASCII."""
    return [(f"{text} größe 表格", SPELLED[label]) for text, label in rows]


def as_they_are(rows: Rows) -> Rows:
    """Return the rows."""
    return rows


def walk(
    root: Path,
    name: str,
    base: Path,
    environment: Mapping[str, str] = os.environ,
    written: Callable[[Rows], Rows] = as_they_are,
) -> str:
    """Return the state of the round that feedback triggered in a project folder of this name."""
    project = root / name / "p"
    project.parent.mkdir()
    overrides: dict[str, dict[str, object]] = {
        "serving": {"port": free_port(), "workers": 1},
        "model": {"max_length": 32, "name": "shop"},
        "triggers": {"min_feedback": FEEDBACK - 5, "tick_seconds": 0.5},
        "training": {"epochs": 1, "threads": 2},
    }
    seed = write_rows(root / name / "seed.csv", written(toy_rows(6, seed=1)))
    reference = write_rows(root / name / "reference.csv", written(toy_rows(240, seed=2)))
    create_project(project, seed=seed, reference=reference, base_model=str(base), overrides=overrides)
    config = project / "ratchet.toml"
    settings = load_settings(config.read_bytes(), {}, root=project)
    command = [sys.executable, "-m", "services.cli", "up", "-c", str(config)]
    up = subprocess.Popen(
        command, cwd=REPOSITORY, env=dict(environment), stdout=subprocess.DEVNULL, start_new_session=True
    )
    registry = Registry(settings.registry_url, "shop")
    try:
        wait_until(lambda: settings.path("state/up.json").exists() or up.poll() is not None, timeout_s=180)
        headers = {"Authorization": f"Bearer {read_keys(project / 'keys.env').api_key}"}
        url = f"http://127.0.0.1:{settings.serving.port}"
        with httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False) as client:
            for n, (text, label) in enumerate(written(toy_rows(FEEDBACK, seed=3))):
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


def compiled_locales(folder: Path) -> None:
    """Compile LOCALES into a folder for LOCPATH; needs localedef and its character maps."""
    folder.mkdir()
    for name, (language, encoding) in LOCALES.items():
        subprocess.run(["localedef", "-c", "-i", language, "-f", encoding, str(folder / name)], check=False)
        if not (folder / name).exists():
            raise SystemExit(f"localedef cannot compile {name}: install the package `locales`")


def walks(root: Path, only: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield each walk: what it is called, and a function that returns its round's state."""
    base = tiny_base_model(root / "base")
    if only in ("", "names"):
        for name in NAMES:
            yield repr(name[:24]), partial(walk, root, name, base)
    if only in ("", "locales"):
        compiled_locales(root / "locales")
        known = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
        for name in LOCALES:
            environment = {**known, "LC_ALL": name, "LOCPATH": str(root / "locales")}
            yield name, partial(walk, root, f"größe {name}", base, environment, spelled)


def main() -> None:
    """Walk all, and print what became of each round."""
    root = Path(tempfile.mkdtemp(prefix="ratchet-folders-"))
    states = []
    try:
        for name, walked in walks(root, os.environ.get("ONLY", "")):
            began = time.monotonic()
            try:
                states.append(walked())
            except Exception as error:
                states.append(f"{type(error).__name__}: {error}")
            print(f"{name:30} {states[-1]}  {time.monotonic() - began:.0f} s", flush=True)
        print(f"{states.count('promoted')} of {len(states)} promoted")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
