"""The HTTP contract over real parts: a promoted model, the batcher, an outbox whose broker is away."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from schemas.setting_groups import AccessSettings
from serving.api import Api
from serving.artifacts import ArtifactStore
from serving.http.access import Keys, issue_token, read_keys
from serving.http.feedback_values import feedback_uuid
from serving.http.metrics import Metrics
from serving.inference.batching import MicroBatcher
from serving.inference.generation_queue import GenerationQueue
from serving.live import LiveModel
from serving.messaging.connection import Broker
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import Topics
from tests.support import first_rounds
from tests.support.fakes import TOPICS, free_port
from tests.support.guards import lone_guard

LATER = 4_000_000_000
SOME_ID = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, first_round: Path) -> Iterator[tuple[TestClient, Keys, Outbox]]:
    settings, registry = first_rounds.copied(first_round, tmp_path_factory.mktemp("api") / "toys")
    serving = settings.serving.model_copy(update={"max_items": 50, "max_text_chars": 1000, "max_body_bytes": 100_000})
    settings = settings.model_copy(
        update={"access": AccessSettings(token_uses=3, unknown_predictions="accept"), "serving": serving}
    )
    keys = read_keys(settings.path("keys.env"))
    store = ArtifactStore(settings.location(settings.artifacts.url))
    live = LiveModel(registry, store, settings.path("state/cache"), threads=1, poll_seconds=0.2)
    live.start()
    batcher = MicroBatcher(live.current, max_batch=8, max_queue=100)
    writing = GenerationQueue(live.current, max_queue=100)
    outbox = Outbox(
        settings.path("state/outbox"),
        broker=Broker(f"127.0.0.1:{free_port()}"),
        topics=Topics.of(settings.stream_name),
        keep=Keep.UNTIL_STORED,
        stored_positions=registry.positions,
        max_bytes=10_000_000,
        timeout_s=1,
    )
    outbox.start()
    metrics, guard = Metrics("api", CollectorRegistry()), lone_guard(settings, keys)
    api = Api(settings, keys, live, batcher, writing, outbox, metrics, guard)
    with TestClient(api, headers={"Authorization": f"Bearer {keys.api_key}"}) as client:
        yield client, keys, outbox
    live.close()
    batcher.close()
    writing.close()
    outbox.close(5)
    registry.close()


@pytest.fixture
def client(parts: tuple[TestClient, Keys, Outbox]) -> TestClient:
    return parts[0]


def test_predictions_come_in_order_with_all_that_was_promised(client: TestClient) -> None:
    texts = ["oven soup butter recipe", "goal team striker league", "bank loan market profit"]
    answer = client.post("/predict", json={"items": [{"text": t} for t in texts], "options": {"coverage": 0.99}})
    assert answer.status_code == 200
    assert answer.headers["x-ratchet-worker"].isdecimal()
    found = answer.json()
    assert [p["label"] for p in found] == ["cooking", "football", "money"]
    for prediction in found:
        assert set(prediction["probabilities"]) == set(TOPICS)
        assert prediction["confidence"] == max(prediction["probabilities"].values())
        assert prediction["label"] in prediction["set"]
    assert len({p["model_version"] for p in found}) == 1
    assert len({p["prediction_id"] for p in found}) == 3


def test_feedback_is_taken_with_a_key_or_with_the_predictions_token(client: TestClient) -> None:
    [prediction] = client.post("/predict", json={"items": [{"text": "the oven"}]}).json()
    body = {"prediction_id": prediction["prediction_id"], "kind": "correction", "value": "money", "feedback_id": "mine"}
    assert client.post("/feedback", json=body).json() == {"feedback_id": "mine"}
    token = {"X-Feedback-Token": prediction["feedback_token"], "Authorization": ""}
    statuses = [client.post("/feedback", json=body, headers=token).status_code for _ in range(4)]
    assert statuses == [202, 202, 202, 429]


@pytest.mark.parametrize(
    ("kind", "value"),
    [("rating", "up"), ("score", 0.5), ("score", 1), ("comment", "call +44 20 7946 0958"), ("retract", "f1")],
)
def test_every_kind_of_feedback_is_taken(client: TestClient, kind: str, value: object) -> None:
    answer = client.post("/feedback", json={"prediction_id": SOME_ID, "kind": kind, "value": value})
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "items"),
        ([], 422, "body"),
        ({"items": []}, 422, "items"),
        ({"items": "hi"}, 422, "items"),
        ({"items": [{"text": 7}]}, 422, "items.0.text"),
        ({"items": [{"text": ""}]}, 422, "items.0.text"),
        ({"items": [{"text": " \n"}]}, 422, "items.0.text"),
        ({"items": [{"text": "hi", "texd": "x"}]}, 422, "items.0.texd"),
        ({"items": [{"text": "hi", "metadata": {"a": 1}}]}, 422, "items.0.metadata.a"),
        ({"items": [{"text": "hi"}], "options": {"coverage": 2}}, 422, "options.coverage"),
        ({"items": [{"text": "hi"}], "options": {"stream": True}}, 422, "options.stream"),
        ({"items": [{"text": "hi"}], "options": {"max_new_tokens": 3}}, 422, "options.max_new_tokens"),
        ({"items": [{"text": "hi"}], "user": ""}, 422, "user"),
        ({"items": [{"text": "x" * 2000}]}, 422, "items.0.text"),
        ({"items": [{"text": "hi"}] * 51}, 422, "items"),
        ({"items": [{"text": "x" * 1_000_000}]}, 413, "body"),
    ],
)
def test_a_bad_prediction_request_names_the_field(client: TestClient, body: Any, status: int, field: str) -> None:
    answer = client.post("/predict", json=body)
    assert answer.status_code == status
    assert field in [d["field"] for d in answer.json()["detail"]]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"items": [{"text": "\xff"}]}', b"[" * 5000, b'{"items": NaN}']
)
def test_what_is_not_json_is_a_400(client: TestClient, content: bytes) -> None:
    answer = client.post("/predict", content=content)
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["field"] == "body"


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"prediction_id": "nonsense"}, 422, "prediction_id"),
        ({"prediction_id": 5}, 422, "prediction_id"),
        ({"kind": "applause"}, 422, "kind"),
        ({"value": "astronomy"}, 422, "value"),
        ({"value": ["money"]}, 422, "value"),
        ({"value": None}, 422, "value.str"),
        ({"kind": "rating", "value": "sideways"}, 422, "value"),
        ({"kind": "score", "value": 2}, 422, "value"),
        ({"kind": "score", "value": True}, 422, "value"),
        ({"feedback_id": "x" * 129}, 422, "feedback_id"),
        ({"extra": 1}, 422, "extra"),
    ],
)
def test_bad_feedback_names_the_field(client: TestClient, change: dict[str, object], status: int, field: str) -> None:
    answer = client.post("/feedback", json={"prediction_id": SOME_ID, "kind": "correction", "value": "money"} | change)
    assert answer.status_code == status
    assert field in [d["field"] for d in answer.json()["detail"]], answer.json()


def test_an_unknown_label_says_what_to_do(client: TestClient) -> None:
    answer = client.post("/feedback", json={"prediction_id": SOME_ID, "kind": "correction", "value": "astronomy"})
    assert "ratchet labels add" in answer.json()["detail"][0]["message"]


def test_keys_and_tokens_are_checked(parts: tuple[TestClient, Keys, Outbox]) -> None:
    client, keys, _ = parts
    body = {"prediction_id": SOME_ID, "kind": "rating", "value": "up"}
    wrong = {"Authorization": "Bearer wrong"}
    assert client.post("/predict", json={"items": [{"text": "hi"}]}, headers=wrong).status_code == 401
    assert client.get("/model", headers=wrong).status_code == 401
    assert client.post("/feedback", json=body, headers=wrong).status_code == 401
    other = issue_token(keys.secret, "01900000-0000-7000-8000-000000000001", LATER)
    assert client.post("/feedback", json=body, headers={"X-Feedback-Token": other}).status_code == 403
    old = issue_token(keys.secret, SOME_ID, 1)
    assert client.post("/feedback", json=body, headers={"X-Feedback-Token": old}).status_code == 401
    assert client.post("/feedback", json=body, headers={"X-Feedback-Token": "junk"}).status_code == 403


def test_other_paths_and_methods_are_refused_in_json(client: TestClient) -> None:
    assert client.get("/predict").status_code == 405
    answer = client.get("/nowhere")
    assert (answer.status_code, answer.json()["error"]) == (404, "Not Found")


def test_the_model_says_what_it_is_and_the_contract_is_published(client: TestClient) -> None:
    model = client.get("/model").json()
    assert (model["name"], model["generation"], model["labels"]) == ("toys", 1, sorted(TOPICS))
    document = client.get("/openapi.json").json()
    assert {"/predict", "/feedback", "/model"} < set(document["paths"])


def test_events_wait_on_disk_without_personal_data(parts: tuple[TestClient, Keys, Outbox]) -> None:
    client, _, outbox = parts
    item = {"text": "mail bob@example.org about the loan", "metadata": {"from": "eve@example.org"}}
    [prediction] = client.post("/predict", json={"items": [item], "user": "alice"}).json()
    client.post(
        "/feedback", json={"prediction_id": prediction["prediction_id"], "kind": "comment", "value": "+44 20 7946 0958"}
    )
    stored = b"".join(path.read_bytes() for path in outbox_files(outbox))
    assert b"<EMAIL>" in stored
    for secret in (b"bob@example.org", b"eve@example.org", b"alice", b"7946 0958"):
        assert secret not in stored


def test_a_feedback_id_is_answered_as_it_was_sent_and_kept_as_a_hash(parts: tuple[TestClient, Keys, Outbox]) -> None:
    client, keys, outbox = parts
    body = {"prediction_id": SOME_ID, "kind": "correction", "value": "money\u200b ", "feedback_id": "carol@example.org"}
    assert client.post("/feedback", json=body).json() == {"feedback_id": "carol@example.org"}
    taken = {**body, "kind": "retract", "value": "carol@example.org", "feedback_id": None}
    assert client.post("/feedback", json=taken).status_code == 202
    stored = b"".join(path.read_bytes() for path in outbox_files(outbox))
    assert b"carol" not in stored
    assert stored.count(feedback_uuid(lambda: keys.secret, "carol@example.org").encode()) >= 2
    assert b'"value":"money"' in stored


def outbox_files(outbox: Outbox) -> list[Path]:
    return sorted(outbox.folder.glob("outbox-*.db*"))


def test_the_body_of_an_error_is_json_of_one_shape(client: TestClient) -> None:
    body = json.loads(client.post("/predict", json={}).content)
    assert set(body) == {"error", "detail"}
