"""`ratchet up` on a tiny project, with callers beside it: what the benchmarks of faults and growth harm and measure.

Turns a folder into a project that `ratchet init` would make, a running `up` whose lines are kept, and traffic that counts what
was answered. Nothing here stands in for Ratchet's own code.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx

from schemas.settings import Settings, load_settings
from services.projects import create_project
from serving.artifacts import ArtifactStore
from serving.http.access import read_keys
from serving.registry.registry import Registry
from serving.registry.safeguards.marker import keep
from tests.support.fakes import REPOSITORY, TOPICS, free_port, tiny_base_model, toy_rows, write_rows
from tests.support.versions import promote, tiny_version


def tiny_project(root: Path, scratch: Path, version: Path | None = None, **overrides: dict[str, object]) -> Settings:
    """A project in `root` whose champion is `version`, or a tiny one; seed, reference and base model lie in `scratch`."""
    groups: dict[str, dict[str, object]] = {
        "model": {"max_length": 32, "name": "m"},
        "serving": {"port": free_port(), "workers": 2},
        "triggers": {"min_feedback": 1_000_000},
        "training": {"epochs": 1, "threads": 1},
    }
    for group, keys in overrides.items():
        groups[group] = groups.get(group, {}) | keys
    base = tiny_base_model(scratch / "base")
    create_project(
        root,
        seed=write_rows(scratch / "seed.csv", toy_rows(6, seed=1)),
        reference=write_rows(scratch / "reference.csv", toy_rows(240, seed=2)),
        base_model=str(base),
        overrides=groups,
    )
    settings = load_settings((root / "ratchet.toml").read_bytes(), {}, root=root)
    with contextlib.closing(Registry(settings.registry_url, "m")) as registry:
        registry.migrate()
        registry.set_labels(TOPICS)
        store = ArtifactStore(settings.location(settings.artifacts.url))
        promote(registry, store, version or tiny_version(scratch / "v", base, "v", list(TOPICS)))
        keep(registry, store)
    return settings


class RunningUp:
    """One `ratchet up`: its process, and the lines that it has shown with their times."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{settings.serving.port}"
        self.key = read_keys(settings.path("keys.env")).api_key
        self.lines: list[tuple[float, str]] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> None:
        """Start `up`; `ready` says when it is."""
        command = [sys.executable, "-m", "services.cli", "up", "-c", str(self.settings.root / "ratchet.toml")]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.lines.append((time.monotonic(), line.rstrip()))

    def shown(self, text: str, since: float = 0.0) -> str | None:
        """The first line since a time that contains `text`."""
        return next((line for at, line in list(self.lines) if at >= since and text in line), None)

    def ready(self, timeout_s: float = 240) -> None:
        """Wait until `up` is ready. Raises RuntimeError with its lines if it ends before, or is not ready in time."""
        process = self.process
        assert process is not None
        until(lambda: self.settings.path("state/up.json").exists() or process.poll() is not None, timeout_s)
        if process.poll() is not None or not self.shown("Ctrl-C stops"):
            raise RuntimeError("\n".join(line for _, line in self.lines))

    def pid(self, part: str) -> int:
        """Process id of a part."""
        state = json.loads(self.settings.path("state/up.json").read_text(encoding="utf-8"))
        return int(state["pids"][part])

    def status(self) -> dict[str, Any]:
        """What `ratchet status --json` prints."""
        command = [sys.executable, "-m", "services.cli", "status", "--json", "-c"]
        done = subprocess.run(
            [*command, str(self.settings.root / "ratchet.toml")],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            encoding="utf-8",
        )
        return dict(json.loads(done.stdout)) if done.stdout else {"error": done.stderr}

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


class Address(Protocol):
    """A server: its URL and a key."""

    @property
    def url(self) -> str: ...
    @property
    def key(self) -> str: ...


class Traffic:
    """Callers that ask for predictions and correct the first of each answer; counts what was answered, and when.

    Args:
        up: the server.
        callers: threads.
        items: texts of a request.
        pause_s: mean pause of a caller after each request.

    """

    def __init__(self, up: Address, *, callers: int = 2, items: int = 1, pause_s: float = 0.05) -> None:
        self.up = up
        self.predicted: set[str] = set()
        self.accepted: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self.when: dict[str, list[tuple[float, str]]] = {"predict": [], "feedback": []}  # times and ids of successes
        self.answered: list[tuple[float, str]] = []  # time and kind of each success
        self.failed: list[tuple[float, str]] = []  # time of each failure, and its kind with status or error
        self._items, self._pause_s = items, pause_s
        self._stop, self._calling = threading.Event(), threading.Event()
        self._calling.set()
        self._threads = [threading.Thread(target=self._call, args=(n,), daemon=True) for n in range(callers)]

    @contextlib.contextmanager
    def running(self) -> Iterator["Traffic"]:
        """Run the callers within the block."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(40)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No new calls within the block."""
        self._calling.clear()
        try:
            yield
        finally:
            self._calling.set()

    def first(self, kind: str, since: float) -> float | None:
        """Seconds from a time until the first success of a kind after it."""
        return next((at - since for at, which in list(self.answered) if at > since and which == kind), None)

    def longest_gap(self, kind: str, start: float, end: float) -> float:
        """The longest time between two successes of a kind."""
        times = [start, *(at for at, which in list(self.answered) if which == kind and start <= at <= end), end]
        return max(after - before for before, after in itertools.pairwise(times))

    def _call(self, number: int) -> None:
        draw = random.Random(number)
        rows = toy_rows(500, seed=100 + number)
        limits = httpx.Limits(max_keepalive_connections=0)  # each request may reach another worker
        headers = {"Authorization": f"Bearer {self.up.key}"}
        with httpx.Client(base_url=self.up.url, headers=headers, timeout=30, limits=limits, trust_env=False) as client:
            while not self._stop.is_set():
                self._calling.wait(1)
                if not self._calling.is_set():
                    continue
                chosen = draw.choices(rows, k=self._items)
                self._visit(client, chosen, f"u{number}-{draw.randrange(1000)}")
                self._stop.wait(self._pause_s)

    def _visit(self, client: httpx.Client, rows: list[tuple[str, str]], user: str) -> None:
        answer = self._post(client, "predict", {"items": [{"text": text} for text, _ in rows], "user": user}, 200)
        if answer is None:
            return
        ids = [one["prediction_id"] for one in answer]
        self.predicted.update(ids)
        self.when["predict"] += [(time.monotonic(), one) for one in ids]
        body = {"prediction_id": answer[0]["prediction_id"], "kind": "correction", "value": rows[0][1], "user": user}
        accepted = self._post(client, "feedback", body, 202)
        if accepted is not None:
            self.accepted.add(accepted["feedback_id"])
            self.when["feedback"].append((time.monotonic(), accepted["feedback_id"]))

    def _post(self, client: httpx.Client, kind: str, body: dict[str, object], wanted: int) -> Any:
        try:
            answer = client.post(f"/{kind}", json=body)
        except httpx.HTTPError as error:
            self._fail(f"{kind} {type(error).__name__}")
            return None
        if answer.status_code != wanted:
            self._fail(f"{kind} {answer.status_code}")
            return None
        self.statuses[f"{kind} {answer.status_code}"] += 1
        self.answered.append((time.monotonic(), kind))
        return answer.json()

    def _fail(self, what: str) -> None:
        self.statuses[what] += 1
        self.failed.append((time.monotonic(), what))


def until(condition: Callable[[], object], timeout_s: float, every_s: float = 0.1) -> float | None:
    """Seconds until a condition held; None if it did not in time."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > timeout_s:
            return None
        time.sleep(every_s)
    return time.monotonic() - begun


def stored_ids(settings: Settings) -> tuple[Counter[str], Counter[str], list[str]]:
    """Rows of each prediction id and feedback id in the event log, and the ids of effective feedback."""
    from pipelines.feature_store.store import FeatureStore

    features = FeatureStore(settings)
    predictions, feedback = (features.log_rows(table) for table in ("predictions", "feedback"))
    return (
        Counter(predictions["prediction_id"].to_pylist()),
        Counter(feedback["feedback_id"].to_pylist()),
        features.export()["feedback_id"].to_pylist(),
    )
