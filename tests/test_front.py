"""What reaches BentoML and what does not; bodies and tokens that cost no more than a refusal. On ASGI apps, without a server."""

import gzip
import time
from pathlib import Path
from typing import Any

import bentoml
import orjson
import pytest
from starlette.testclient import TestClient

from schemas.configuration.serving import ServingSettings
from schemas.settings import Settings, load_settings
from serving.http import contract
from serving.http.access import bearer, issue_token
from serving.http.asgi import Message, Receive, Refused, Request, Send, unpacked
from serving.http.cors import Cors
from serving.http.front import Front
from serving.http.openapi.document import openapi_document
from serving.http.routes import Router

ASSETS = Path(bentoml.__file__).parent / "_internal/server/static_content"
PREFLIGHT = {"origin": "https://app.example", "access-control-request-method": "POST"}


class Recorder:
    """Stands where BentoML's app is: an app that keeps the scopes it was given."""

    def __init__(self) -> None:
        self.scopes: list[Message] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % len(self.scopes)})


async def echo(request: Request) -> tuple[int, bytes]:
    return 200, orjson.dumps({"got": len(await request.body(1000))})


async def hello(_request: Request) -> tuple[int, bytes]:
    return 200, b'{"hello": 1}'


def router(*origins: str) -> Router:
    return Router(
        {"/echo": ("POST", echo), "/hello": ("GET", hello)}, headers=[], cors=Cors(origins), max_body_bytes=1000
    )


@pytest.fixture
def bento() -> Recorder:
    return Recorder()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def front(bento: Recorder, now: list[float]) -> TestClient:
    return TestClient(Front(router(), bento, ASSETS, clock=lambda: now[0]))


@pytest.mark.parametrize(
    "path",
    ["/x" * 4000, "//livez", "/livez/", "/livez/x", "/LIVEZ", "/livez%2f", "/%2flivez", "/metrics/x", "/docs.json",
     "/static_content/x", "/docs/../../x",
     "/docs/..%2f..%2fservice.py", "/docs/swagger-ui.css/", "/docs//etc/passwd", "/schema.json", "/.."],
)  # fmt: skip
def test_no_unknown_path_reaches_bentoml(front: TestClient, bento: Recorder, path: str) -> None:
    answer = front.get("http://h" + path)
    assert (answer.status_code, answer.json()["error"], bento.scopes) == (404, "Not Found", [])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "X" * 100])
def test_no_other_method_reaches_bentoml(front: TestClient, bento: Recorder, method: str) -> None:
    for path in ("/livez", "/metrics", "/readyz", "/healthz", "/docs"):
        assert front.request(method, path).status_code in (404, 405)
    assert bento.scopes == []


def test_probes_pass_without_what_a_caller_chose(front: TestClient, bento: Recorder) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        assert front.get(f"{path}?a=b", headers={"Host": "evil", "X-Any": "thing"}).status_code == 200
    assert {scope["path"] for scope in bento.scopes} == {"/livez", "/readyz", "/healthz"}
    assert all(scope["headers"] == [] and scope["query_string"] == b"" for scope in bento.scopes)


def test_metrics_are_made_once_a_second_however_many_ask(front: TestClient, bento: Recorder, now: list[float]) -> None:
    assert [front.get("/metrics").text for _ in range(100)] == ["1"] * 100
    now[0] += 1.5
    assert front.get("/metrics").text == "2"


def test_a_websocket_is_refused(front: TestClient, bento: Recorder) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), front.websocket_connect("/livez"):
        pass
    assert bento.scopes == []


def test_the_documentation_is_served_with_relative_links(front: TestClient) -> None:
    for path, base in (("/docs", "./"), ("/docs/", "../")):
        assert f'<base href="{base}">' in front.get(path).text
        assert 'href="docs/swagger-ui.css"' in front.get(path).text
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert len(front.get(f"/docs/{name}").content) > 100_000
    assert openapi_document("classification", ServingSettings())["servers"][0]["url"] == "."
    widget = front.get("/feedback.js")
    assert "customElements.define" in widget.text
    assert widget.headers["access-control-allow-origin"] == "*"


def test_a_slash_more_head_and_options_are_answered(front: TestClient) -> None:
    assert front.post("/echo/", content=b"abc", follow_redirects=False).json() == {"got": 3}
    assert front.get("/hello/").status_code == 200
    head = front.head("/hello")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "12")
    options = front.options("/echo")
    assert (options.status_code, options.headers["allow"]) == (204, "POST, OPTIONS")
    assert front.head("/echo").status_code == 405
    assert front.get("/echo").headers["allow"] == "POST, OPTIONS"


def test_browsers_may_call_from_the_origins_that_are_set() -> None:
    client = TestClient(router("https://app.example"))
    answer = client.options("/echo", headers=PREFLIGHT)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-feedback-token" in answer.headers["access-control-allow-headers"]
    for made in (client.post("/echo", headers=PREFLIGHT), client.get("/nowhere", headers=PREFLIGHT)):
        assert made.headers["access-control-allow-origin"] == "https://app.example"
        assert made.headers["vary"] == "Origin"
    assert client.post("/echo").headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil", "http://app.example", "null", ""]
)
def test_no_other_origin_gets_a_cors_header(origin: str) -> None:
    for client in (TestClient(router("https://app.example")), TestClient(router())):
        for answer in (
            client.options("/echo", headers=PREFLIGHT | {"origin": origin}),
            client.post("/echo", headers={"origin": origin}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_any_origin_may_be_allowed() -> None:
    answer = TestClient(router("*")).post("/echo", headers={"origin": "null"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "vary" not in answer.headers


def test_origins_are_settings() -> None:
    def origins(value: str) -> tuple[str, ...]:
        return load_settings("", {"RATCHET_SERVING__CORS_ORIGINS": value}, root=Path()).serving.cors_origins

    assert origins("https://A.example:8443, http://localhost:5173") == (
        "https://a.example:8443",
        "http://localhost:5173",
    )
    assert origins("") == Settings().serving.cors_origins == ()
    for wrong in ("a.example", "https://a.example/", "https://a.example/path"):
        with pytest.raises(ValueError, match=r"serving\.cors_origins = .*an origin is scheme://host"):
            origins(wrong)


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (b"Bearer k", True),
        (b"bearer k", True),
        (b"BEARER    k  ", True),
        (b"Bearer", False),
        (b"Bearerk", False),
        (b"Basic k", False),
        (b"k", False),
        (b"Bearer K", False),
        (b"Bearer k k", False),
        (b"", False),
        (b"\xff k", False),
    ],
)
def test_a_scheme_has_no_case(header: bytes, right: bool) -> None:
    assert (bearer(header) == b"k") is right


def test_gzip_is_unpacked_within_the_limit() -> None:
    client = TestClient(router())
    packed = gzip.compress(b"a" * 500)

    def post(content: bytes, coding: str = "gzip") -> Any:
        return client.post("/echo", content=content, headers={"Content-Encoding": coding})

    assert post(packed).json() == post(packed, "X-GZIP").json() == {"got": 500}
    assert post(packed + gzip.compress(b"b")).json() == {"got": 501}
    assert post(b"abc", "identity").json() == {"got": 3}
    assert post(packed[:-4]).status_code == post(b"junk").status_code == post(packed + b"junk").status_code == 400
    assert post(gzip.compress(b"a" * 100_000)).status_code == 413
    for coding in ("br", "deflate", "gzip, gzip", "zstd"):
        refused = post(packed, coding)
        assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "gzip, identity")


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    started = time.process_time()
    for packed in (bomb, gzip.compress(b"") * 10_000):
        with pytest.raises(Refused):
            unpacked(packed, 1000)
    assert time.process_time() - started < 0.5


def test_a_body_that_says_it_is_too_long_is_refused_unread() -> None:
    client = TestClient(router())
    assert client.post("/echo", content=b"", headers={"Content-Length": "1001"}).status_code == 413
    assert client.post("/echo", content=b"", headers={"Content-Length": "9" * 30}).status_code == 413


BOMBS: dict[str, tuple[type[contract.PredictRequest | contract.FeedbackRequest], bytes]] = {
    "list": (contract.FeedbackRequest, b'{"prediction_id": "x", "kind": "rating", "value": [%s0]}' % (b"0," * 500_000)),
    "short lists": (contract.PredictRequest, b'{"items": [%s0]}' % (b'{"text": 0, "b": [1]},' * 50_000)),
    "keys": (contract.FeedbackRequest, b"{%s}" % b",".join(b'"k%d": 0' % n for n in range(80_000))),
    "keys of an item": (contract.PredictRequest, b'{"items": [{%s}]}' % b",".join(b'"k%d": 0' % n for n in range(80_000))),
    "metadata": (contract.PredictRequest, b'{"items": [{"text": "a", "metadata": {%s}}]}'
                 % b",".join(b'"k%d": 0' % n for n in range(80_000))),
    "items": (contract.PredictRequest, b'{"items": [%s0]}' % (b"0," * 500_000)),
    "items that are valid": (contract.PredictRequest, b'{"items": [%s{}]}' % (b'{"text": "a"},' * 70_000)),
    "lists": (contract.FeedbackRequest, b'{"value": [%s[]]}' % (b"[]," * 200_000)),
    "long key": (contract.PredictRequest, b'{"%s": 0}' % (b"k" * 3_900_000)),
    "long id": (contract.FeedbackRequest, b'{"prediction_id": "%s"}' % (b"k" * 3_900_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bad_body_costs_little_and_says_little(name: str) -> None:
    shape, body = BOMBS[name]
    orjson.loads(body)
    started = time.process_time()
    with pytest.raises(contract.NotValid) as caught:
        contract.read(body, shape, 256)
    assert time.process_time() - started < 5, "a tenth of a second on an idle machine; validated whole it takes 10"
    assert len(caught.value.fields) <= contract.MAX_ERRORS + contract.MAX_KEYS
    assert sum(len(field) + len(message) for field, message in caught.value.fields) < 8000


@pytest.mark.parametrize(
    "body", [b"[" * 2_000_000, b'{"a":' * 500_000, b"1e999", b'"' + b"\\u0000" * 9, b"9" * 3_000_000 + b"x"]
)
def test_what_is_no_json_is_refused_at_once(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises((contract.NotJson, contract.NotValid)):
        contract.read(body, contract.PredictRequest, 256)
    assert time.process_time() - started < 5, "a tenth of a second on an idle machine; validated whole it takes 10"


def test_feedback_has_room_for_the_longest_text_as_json() -> None:
    assert contract.feedback_bytes(20_000, 4_000_000) == 136_384
    assert contract.feedback_bytes(20_000, 100_000) == 100_000


def test_tokens_that_open_nothing_are_refused_before_the_body() -> None:
    from serving.http.access import TokenRefused, check_token_alone

    assert check_token_alone(issue_token("s", "p", 4_000_000_000)) == 4_000_000_000
    for token in (
        "",
        "junk",
        "1." + "0" * 32,
        "4000000000." + "0" * 31,
        "4000000000." + "g" * 32,
        "٤000000000." + "0" * 32,
    ):
        with pytest.raises(TokenRefused):
            check_token_alone(token)
