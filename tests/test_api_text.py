"""The HTTP contract of a model that writes: whole answers, event streams, refusals, callers who hang up, swaps, events."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from schemas.events import PredictionMade, parse_event
from schemas.settings import Settings
from serving.api import Api
from serving.artifacts import ArtifactStore
from serving.http.access import write_keys
from serving.http.asgi import ClientGone, EventStream, Request, event
from serving.http.metrics import Metrics
from serving.inference.batching import MicroBatcher
from serving.inference.decoder_runtime import DecoderRuntime
from serving.inference.generation_queue import GenerationQueue
from serving.inference.normalise import NORMALISER
from serving.live import LiveModel
from serving.messaging.connection import Broker
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import Topics
from serving.registry.registry import Registry
from tests.support.fakes import free_port
from tests.support.guards import lone_guard
from tests.support.versions import copied, promote, tiny_text_version


class Kept(Outbox):
    """An outbox that remembers which predictions it was given."""

    def __init__(self, folder: Path, model: str) -> None:
        self.kept: list[PredictionMade] = []
        super().__init__(
            folder,
            broker=Broker(f"127.0.0.1:{free_port()}"),
            topics=Topics.of(model),
            keep=Keep.UNTIL_STORED,
            stored_positions=dict,
            max_bytes=10_000_000,
            timeout_s=1,
        )

    def put_prediction_bytes(self, prediction_id: str, event: bytes) -> None:
        found = parse_event(event)
        assert isinstance(found, PredictionMade)
        self.kept.append(found)
        super().put_prediction_bytes(prediction_id, event)


class Project:
    def __init__(self, root: Path, version: Path) -> None:
        settings = Settings.model_validate({"model": {"name": "m", "task": "generation"}}).model_copy(
            update={"root": root}
        )
        keys = write_keys(root / "keys.env")
        self.registry = Registry(settings.registry_url, "m")
        self.registry.migrate()
        self.store = ArtifactStore(settings.location(settings.artifacts.url))
        promote(self.registry, self.store, version)
        self.live = LiveModel(self.registry, self.store, settings.path("state/cache"), threads=1, poll_seconds=60)
        self.live.start()
        self.outbox = Kept(settings.path("state/outbox"), "m")
        self.batcher = MicroBatcher(self.live.current, max_batch=8, max_queue=9)
        self.generation = GenerationQueue(self.live.current, max_queue=9)
        metrics, guard = Metrics("m", CollectorRegistry()), lone_guard(settings, keys)
        self.api = Api(settings, keys, self.live, self.batcher, self.generation, self.outbox, metrics, guard)
        self.headers = {"Authorization": f"Bearer {keys.api_key}"}

    def close(self) -> None:
        for part in (self.live, self.batcher, self.generation, self.registry):
            part.close()

    def events(self) -> list[PredictionMade]:
        self.api.flush()
        return self.outbox.kept


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, text_version: Path) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("m"), text_version)
    made.outbox.start()
    yield made
    made.close()
    made.outbox.close(5)


@pytest.fixture
def client(project: Project) -> Iterator[TestClient]:
    with TestClient(project.api, headers=project.headers) as client:
        yield client


def ask(client: TestClient, *texts: str, **options: Any) -> Any:
    return client.post("/predict", json={"items": [{"text": text} for text in texts], "options": options})


def told(body: str) -> list[tuple[str, Any]]:
    """Names and values of an event stream."""
    parts = [part.split("\n") for part in body.split("\n\n") if part]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def test_texts_are_answered_in_order_and_leave_events(client: TestClient, project: Project) -> None:
    answer = ask(client, "hello", "call +44 20 7946 0958", max_new_tokens=7)
    assert answer.status_code == 200, answer.text
    current = project.live.current()
    assert current is not None and isinstance(current[0], DecoderRuntime)
    expected = current[0].generate(["hello", "call <PHONE>"], 7)
    found = answer.json()
    assert [one["text"] for one in found] == [one.text for one in expected]
    assert all(set(one) == {"prediction_id", "text", "confidence", "model_version", "feedback_token"} for one in found)
    assert all(0 < one["confidence"] < 1 for one in found)
    events = project.events()[-2:]
    assert [event.data.prediction_id for event in events] == [one["prediction_id"] for one in found]
    assert [event.data.label for event in events] == [one["text"].strip() for one in found]
    assert [event.data.text for event in events] == ["hello", "call <PHONE>"]
    assert {event.data.task for event in events} == {"generation"}
    model = client.get("/model").json()
    assert (model["task"], model["labels"]) == ("generation", [])


def test_a_stream_gives_the_pieces_and_then_the_answer(client: TestClient, project: Project) -> None:
    [whole] = ask(client, "hello").json()
    answer = ask(client, "hello", stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-ratchet-worker"].isdecimal()
    *pieces, (last, said) = told(answer.text)
    assert {name for name, _ in pieces} == {"piece"}
    assert "".join(piece["text"] for _, piece in pieces) == said["text"] == whole["text"]
    assert last == "answer"
    assert set(said) == set(whole)
    assert project.events()[-1].data.prediction_id == said["prediction_id"]


@pytest.mark.parametrize(
    ("texts", "options", "field"),
    [
        (["a", "b"], {"stream": True}, "items"),
        (["a"], {"max_new_tokens": 13}, "options.max_new_tokens"),
        (["a"], {"max_new_tokens": 0}, "options.max_new_tokens"),
        (["a"], {"coverage": 0.9}, "options.coverage"),
        (["a"], {"stream": "yes"}, "options.stream"),
    ],
)
def test_what_cannot_be_written_is_refused(client: TestClient, texts: list[str], options: Any, field: str) -> None:
    answer = ask(client, *texts, **options)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == field


def test_corrections_are_texts(client: TestClient) -> None:
    [found] = ask(client, "hello").json()
    body = {"prediction_id": found["prediction_id"], "kind": "correction"}
    for value, status in (("Write to <EMAIL>.", 202), (" ", 422), (3, 422), (["a"], 422), ("x" * 20_001, 422)):
        assert client.post("/feedback", json={**body, "value": value}).status_code == status, value


def test_the_document_says_what_is_answered(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    answer = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    assert answer["application/json"]["schema"]["items"]["$ref"].endswith("/TextPrediction")
    assert "text/event-stream" in answer


def test_a_swap_leaves_every_answer_whole(
    client: TestClient, project: Project, tiny_decoder: Path, tmp_path: Path
) -> None:
    before = project.live.current()
    assert before is not None
    promote(project.registry, project.store, tiny_text_version(tmp_path / "u", tiny_decoder, "u", seed=3))
    first = ask(client, "hello").json()
    project.live.follow()
    second = ask(client, "hello").json()
    assert (first[0]["model_version"], second[0]["model_version"]) == ("t", "u")
    assert first[0]["text"] != second[0]["text"]
    broken = copied(tmp_path / "u", tmp_path / "v", model_version="v", max_length=40)
    (broken / "model/config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="changed"):
        promote(project.registry, project.store, broken)
    project.registry.promote("t", expected="u", token=None, actor="a person")
    project.live.follow()
    after = project.live.current()
    assert after is not None
    assert after[0] is before[0], "loaded again"


def test_a_text_of_which_nothing_is_left_is_answered_without_a_chat_template_too(
    tiny_decoder: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(tiny_decoder, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    plain = tiny_text_version(tmp_path / "plain", bare, "plain")
    project = Project(tmp_path, copied(plain, tmp_path / "v", model_version="v", normaliser=NORMALISER))
    project.outbox.start()
    with TestClient(project.api, headers=project.headers) as client:
        answers = [ask(client, *texts) for texts in (["\u200b"], ["\u200b", "hello"])]
        streamed = ask(client, "\u200b", stream=True)
    project.close()
    project.outbox.close(5)
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    [alone], [beside, _] = (answer.json() for answer in answers)
    assert beside["text"] == alone["text"]
    assert told(streamed.text)[-1][1]["text"] == alone["text"]


# --- a caller who hangs up, without a socket --------------------------------------------------------------------------


class Caller:
    """An ASGI caller that sends one request and hangs up when told to."""

    def __init__(self, body: bytes = b"") -> None:
        self.messages: list[dict[str, Any]] = [{"type": "http.request", "body": body}]
        self.hangs_up = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if self.messages:
            return self.messages.pop()
        await self.hangs_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_is_written_for_who_hung_up(project: Project, stream: bool) -> None:
    body = {"items": [{"text": "hello"}], "options": {"stream": stream}}
    caller, known = Caller(orjson.dumps(body)), len(project.events())
    headers = [(name.lower().encode(), value.encode()) for name, value in project.headers.items()]
    scope = {"type": "http", "path": "/predict", "method": "POST", "headers": headers}
    caller.hangs_up.set()
    await project.api(scope, caller.receive, caller.send)
    assert len(project.events()) == known
    assert not [
        message for message in caller.sent if message["type"] == "http.response.body" and message["body"] == b""
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stream_is_left_as_its_caller_hangs_up() -> None:
    caller, closed = Caller(), asyncio.Event()
    caller.messages.clear()

    async def events() -> AsyncIterator[bytes]:
        try:
            yield event("piece", {"text": "a\nb"})
            caller.hangs_up.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    with pytest.raises(ClientGone):
        await EventStream(Request("POST", {}, caller.receive), events()).send(caller.send, [])
    assert closed.is_set()
    assert [message.get("body") for message in caller.sent] == [None, b'event: piece\ndata: {"text":"a\\nb"}\n\n']
