"""A console over a small real project: a promoted version, a candidate that waits, one that was rejected, people with roles.

Turns the project of first_rounds.py into one that has something on every page, and serves it in this process on a free port.
The tests of the console, its screenshots and its benchmark use it. Nothing here stands in for the console's own code.
"""

import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import uvicorn

from pipelines.feature_store.event_log import SCHEMAS, EventLog
from pipelines.feature_store.store import FeatureStore
from schemas.records import RoundState
from schemas.settings import Settings
from schemas.toml_file import parse
from services.console.app import build
from services.console.people import operator_key
from services.console.project import Project
from services.console.sessions import Sessions
from services.console.sign_in import SignIn
from services.console.throttle import Throttle
from services.console_server import listening
from services.projects import open_project
from serving.http.access import pseudonym, read_keys
from serving.registry.registry import Registry
from tests.support import first_rounds
from tests.support.fakes import free_port, toy_rows

NAME = "project"
ROLES: Mapping[str, tuple[str, ...]] = {
    "rita": ("review",),
    "adam": ("admin",),
    "app": ("predict", "feedback"),
}


@dataclass(frozen=True)
class Console:
    """A running console: its address, its project, and the keys of its people."""

    url: str
    project: Project
    keys: dict[str, str]

    @property
    def registry(self) -> Registry:
        """The project's registry."""
        return self.project.registry


def with_console(folder: Path, **console: object) -> Settings:
    """The settings of a project, with changed ones of the console."""
    settings = open_project(folder)
    changed = settings.console.model_validate({**settings.console.model_dump(), "port": free_port(), **console})
    return settings.model_copy(update={"console": changed})


def configure(folder: Path, **groups: Mapping[str, object]) -> None:
    """Write settings into a project's ratchet.toml, which loses its comments."""
    config = folder / "ratchet.toml"
    tree = parse(config.read_text(encoding="utf-8"), config.name)
    for group, keys in groups.items():
        tree[group] = {**tree.get(group, {}), **keys}
    lines = [
        line
        for group, keys in tree.items()
        for line in (f"[{group}]", *(f"{k} = {json.dumps(value)}" for k, value in keys.items()))
    ]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")


def project_of(settings: Settings) -> Project:
    """The project as the console's process opens it."""
    registry = Registry(settings.registry_url, settings.model.name)
    registry.migrate()
    keys = settings.path(settings.access.keys)
    return Project(settings, settings.root / "ratchet.toml", registry, read_keys(keys), operator_key(keys))


@contextlib.contextmanager
def served(settings: Settings, *, people: bool = True, tries: int = 1000) -> Iterator[Console]:
    """Serve a project's console in a thread."""
    project = project_of(settings)
    registry = project.registry
    keys = {"operator": project.operator_key, "api": project.keys.api_key}
    if people:
        keys |= {name: registry.people.add(name, roles) for name, roles in ROLES.items()}
    sessions = Sessions(project.keys.secret, settings.console.session_hours)
    signing = SignIn(project.keys, project.operator_key, registry, sessions, Throttle(tries, tries, 10 * tries))
    server = uvicorn.Server(listening(project, build(project, signing)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield Console(f"http://127.0.0.1:{settings.console.port}", project, keys)
    finally:
        server.should_exit = True
        thread.join(10)
        registry.close()


def make(folder: Path, first_round: Path) -> None:
    """Fill `folder` with a copy of the promoted project, feedback of some hours, and a candidate that awaits approval."""
    settings, registry = first_rounds.copied(first_round, folder / NAME)
    with contextlib.closing(registry):
        registry.migrate()
        add_events(settings, 240)
        gates = settings.gates.model_copy(update={"approval": "manual"})
        by_hand = settings.model_copy(update={"gates": gates})
        record = first_rounds.next_round(by_hand, registry, FeatureStore(by_hand))
        assert record.state is RoundState.AWAITING_APPROVAL, record.detail


def copied(made: Path, to: Path, **console: object) -> Settings:
    """A copy of the project in the new folder `to`."""
    return with_console(shutil.copytree(made / NAME, to), **console)


class Visitor:
    """A browser without scripts: keeps cookies, and sends the page's CSRF token with every form."""

    def __init__(self, console: Console, who: str | None = None) -> None:
        self.console = console
        self.http = httpx.Client(base_url=console.url, trust_env=False, timeout=60)
        self.csrf = ""
        if who is not None:
            answer = self.http.post("/sign-in", data={"key": console.keys[who], "next": "/"})
            assert answer.status_code == 303, answer.text
            self.csrf = self.token("/try" if console.project.settings.console.try_page != "off" else "/")

    def token(self, path: str) -> str:
        """The CSRF token of a page."""
        match = re.search(r'name="csrf" content="([0-9a-f]*)"', self.http.get(path).text)
        assert match
        return match[1]

    def get(self, path: str) -> httpx.Response:
        """Ask for a page."""
        return self.http.get(path)

    def post(self, path: str, **form: Any) -> httpx.Response:
        """Send a form with its token."""
        return self.http.post(path, data={"csrf": self.csrf, **form})


def add_events(settings: Settings, n: int, *, start: int = 0, version: str = "v", now: datetime | None = None) -> None:
    """Store `n` predictions and feedback of the last hours, as the consumer would have; `start` were stored before."""
    now = now or datetime.now(UTC)
    log = EventLog(settings.location(settings.feature_store.event_log))
    rows = toy_rows(start + n, seed=7)[start:]
    secret = read_keys(settings.path(settings.access.keys)).secret
    people = [pseudonym(secret, f"u{k}") for k in range(12)]
    times = [now - timedelta(seconds=40 * (n - k)) for k in range(n)]
    ids = [f"p{start + k:06d}" for k in range(n)]
    position: dict[str, Any] = {"topic_id": ["t"] * n, "partition": [0] * n, "offset": list(range(start, start + n))}
    common = {**position, "event_timestamp": times, "created_timestamp": times, "prediction_id": ids}
    users = [people[k % len(people)] for k in range(n)]
    predictions = {
        **common,
        "model_version": [version] * n,
        "generation": [1] * n,
        "text": [text for text, _ in rows],
        "predicted_label": [rows[k - 1][1] if k % 5 == 0 else rows[k][1] for k in range(n)],
        "confidence": [0.6 + 0.39 * (k % 7) / 7 for k in range(n)],
        "probabilities": ["{}"] * n,
        "user": users,
        "metadata": ["{}"] * n,
        "audit": [False] * n,
    }
    feedback = {
        **common,
        "feedback_id": [f"f{start + k:06d}" for k in range(n)],
        "kind": ["correction"] * n,
        "value": [f'"{label}"' for _, label in rows],
        "user": users,
    }
    log.append("predictions", pa.Table.from_pydict(predictions, schema=SCHEMAS["predictions"]))
    log.append("feedback", pa.Table.from_pydict(feedback, schema=SCHEMAS["feedback"]))
