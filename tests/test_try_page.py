"""The page /try, open to anybody: who comes back is slowed down, and who comes first costs no look into the event log."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from schemas.configuration.console import ConsoleSettings
from schemas.settings import Settings
from services.console.app import build
from services.console.pages.try_it import VISITOR
from services.console.project import Project
from services.console.throttle import Throttle
from serving.http.access import read_keys
from serving.registry.registry import Registry
from tests.support.registries import Clock

if TYPE_CHECKING:
    from pipelines.feature_store.event_search import EventSearch

A_MINUTE = 30  # requests of one address, as docs and settings promise


class Watched(Project):
    """A project that counts the looks into its event log."""

    looks = 0

    @property
    def events(self) -> "EventSearch":
        self.looks += 1
        return super().events


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def project(settings: Settings, registry: Registry, clock: Clock) -> Watched:
    opened = settings.model_copy(update={"console": ConsoleSettings(try_page="open")})
    made = Watched(opened, settings.root / "ratchet.toml", registry, read_keys(settings.path("keys.env")))
    made.tries = Throttle(A_MINUTE, A_MINUTE, 600, clock.monotonic)
    return made


@pytest.fixture
def client(project: Watched) -> Iterator[TestClient]:
    with TestClient(build(project), follow_redirects=False) as made:
        yield made


def test_a_first_visit_is_not_counted_and_reads_no_feedback(client: TestClient, project: Watched) -> None:
    for _ in range(A_MINUTE + 5):
        client.cookies.clear()
        answer = client.get("/try")
        assert answer.status_code == 200
        assert VISITOR in answer.cookies
    client.cookies.clear()
    forged = client.get("/try", headers={"cookie": f"{VISITOR}={'x' * 22}.{'0' * 32}"})
    assert forged.status_code == 200
    assert project.looks == 0


def test_a_visitor_who_comes_back_too_often_waits(client: TestClient, project: Watched, clock: Clock) -> None:
    assert client.get("/try").status_code == 200
    assert [client.get("/try").status_code for _ in range(A_MINUTE)] == [200] * A_MINUTE
    assert project.looks == A_MINUTE
    slowed = client.get("/try")
    assert slowed.status_code == 429
    assert "too many requests from this address" in slowed.text
    assert client.post("/try", data={"text": "an oven"}).status_code == 429, "pages and questions count together"
    assert project.looks == A_MINUTE
    clock.advance(60)
    assert client.get("/try").status_code == 200


def test_a_renewed_api_key_is_used_at_once(client: TestClient, project: Watched) -> None:
    given: list[str | None] = []

    class Serving(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given.append(self.headers["authorization"])
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            """Keep the test's output empty."""

    with HTTPServer(("127.0.0.1", 0), Serving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        serving = project.settings.serving.model_copy(update={"host": "127.0.0.1", "port": server.server_port})
        project.settings = project.settings.model_copy(update={"serving": serving})
        first = project.keys.api_key
        client.post("/try", data={"text": "an oven"})
        keys = project.settings.path("keys.env")
        keys.write_text(keys.read_text(encoding="utf-8").replace(first, "renewed" * 6), encoding="utf-8")
        client.post("/try", data={"text": "an oven"})
        server.shutdown()
    assert given == [f"Bearer {first}", f"Bearer {'renewed' * 6}"]
