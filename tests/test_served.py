"""The front on a real BentoML worker: one server for all of it, with attacks in small."""

import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.served import Served, make_project, served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served") / "project"
    config = make_project(root, version, workers=1, cors_origins=["https://app.example"], keep_alive_s=1.5)
    with served(config) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"bearer  {server.keys.api_key}"}) as client:
        yield client


def test_metrics_do_not_grow_with_what_callers_send(server: Served, client: httpx.Client) -> None:
    def series() -> set[str]:
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    for path in ("/livez", "/readyz", "/healthz", "/nowhere"):
        client.get(path)
    client.post("/livez")
    known = series()
    for n in range(50):
        client.get(f"/{n}" + "x" * 1000)
        client.request("PROPFIND", f"/livez/{n}", headers={"Host": f"h{n}", "traceparent": f"{n}"})
        client.post(f"/livez?{n}")
        client.get(f"//readyz/{n}")
    assert not {line for line in series() - known if "x" * 100 in line or "PROPFIND" in line or "/livez/" in line}
    assert len(series()) <= len(known) + 5
    assert 'endpoint="/livez"' in "".join(known)


def test_the_worker_answers_as_documented(server: Served, client: httpx.Client) -> None:
    body = gzip.compress(json.dumps({"items": [{"text": "oven"}]}).encode())
    origin = {"Origin": "https://app.example"}
    answer = client.post("/predict/", content=body, headers={"Content-Encoding": "gzip"} | origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert client.get("/").json()["version"][0].isdigit()
    assert "swagger-ui" in client.get("/docs").text
    assert client.head("/model").status_code == 200
    refused = httpx.get(f"{server.url}/model")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


def test_connections_of_a_worker_are_bounded(server: Served) -> None:
    for request, status in (
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", b"431"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as one:
            one.sendall(request)
            assert one.recv(4096).split()[1] == status
    idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    idle.request("GET", "/livez")
    idle.getresponse().read()
    assert idle.sock.recv(1) == b""  # closed after keep_alive_s, before the time-out of this end
    idle.close()


def test_a_large_invalid_body_is_refused_unread(server: Served) -> None:
    body = b'{"prediction_id": "x", "kind": "rating", "value": [%s0]}' % (b"0," * 1_900_000)
    token = {"X-Feedback-Token": "4000000000." + "0" * 32}
    assert httpx.post(f"{server.url}/feedback", content=body, headers=token).status_code == 413
    assert "Traceback" not in server.log.read_text(encoding="utf-8")
