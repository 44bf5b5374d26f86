"""ratchet_client against a live server: every method, blocking and under asyncio; retries; the adapters; its distribution."""

import ast
import asyncio
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipelines.dataset.files import read_rows
from ratchet_client import (
    AsyncClient,
    Client,
    Item,
    NotAuthorised,
    Prediction,
    RequestRefused,
    Retries,
    Unavailable,
    WrongTask,
)
from ratchet_client.openpipe import main as openpipe
from ratchet_client.retries import Attempts, Trouble
from ratchet_client.tensorzero import Metric, TensorZeroFeedback, feedback_of
from tests.support.fakes import TOPICS, free_port
from tests.support.served import Served, make_project, served

DISTRIBUTION = Path(__file__).parent.parent / "serving/client"
SOME_ID = "01900000-0000-7000-8000-000000000000"
AT_ONCE = Retries(attempts=4, total_s=5, first_s=0.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[Served]:
    config = make_project(tmp_path_factory.mktemp("client") / "project", version, workers=1, max_items=5)
    with served(config) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    with Client(server.url, api_key=server.keys.api_key) as client:
        yield client


def test_predictions_have_the_fields_of_their_task(client: Client) -> None:
    found = client.predict("oven soup butter", metadata={"channel": "ios"}, user="u1", coverage=0.9)
    assert found.label in TOPICS
    assert found.confidence == max(found.probabilities.values())
    assert found.label in found.set
    assert "feedback_token" not in repr(found)
    with pytest.raises(WrongTask, match=r"has no 'interval', it has .*label"):
        _ = found.interval
    assert not hasattr(found, "labels")


def test_many_items_are_sent_in_batches_and_come_back_in_order(client: Client) -> None:
    texts = [" ".join(words[n:]) for n in range(4) for words in TOPICS.values()]
    together = client.predict_many([texts[0], *(Item(text, {"n": text}) for text in texts[1:])], batch=5)
    assert [one.label for one in together] == [client.predict(text).label for text in texts]
    assert len({one.prediction_id for one in together}) == len(texts)
    with pytest.raises(RequestRefused, match=r"422: .*items: at most 5 values, got 12"):
        client.predict_many(texts, batch=64)
    with pytest.raises(ValueError, match="`batch` must be at least 1"):
        client.predict_many(texts, batch=0)


def test_every_kind_of_feedback_is_accepted(client: Client) -> None:
    prediction = client.predict("bank loan")
    sent = client.correct(prediction, "money", user="u1")
    assert sent.prediction_id == prediction.prediction_id
    assert client.correct(prediction.prediction_id, "money", feedback_id="mine").feedback_id == "mine"
    for receipt in (
        client.rate(prediction, "down"),
        client.score(prediction, 0.25),
        client.comment(prediction, "no"),
        client.retract(sent),
    ):
        assert receipt.feedback_id != sent.feedback_id
    assert client.model()["model_version"] == prediction.model_version
    with pytest.raises(RequestRefused, match=r"422: not a label in use; value: .*ratchet labels add") as refused:
        client.correct(prediction, "astronomy")
    assert (refused.value.status, refused.value.detail[0][0]) == (422, "value")


def test_a_client_without_a_key_sends_the_predictions_token(
    server: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RATCHET_API_KEY", raising=False)
    prediction = client.predict("goal")
    with Client(server.url) as anonymous:
        receipt = anonymous.rate(prediction, "up")
        anonymous.retract(receipt)
        with pytest.raises(NotAuthorised, match="401"):
            anonymous.rate(prediction.prediction_id, "up")
        with pytest.raises(NotAuthorised):
            anonymous.predict("goal")
        other = Prediction(SOME_ID, "v", prediction.feedback_token, {})
        with pytest.raises(NotAuthorised, match="403"):
            anonymous.rate(other, "up")
    monkeypatch.setenv("RATCHET_API_KEY", server.keys.api_key)
    monkeypatch.setenv("RATCHET_URL", server.url)
    with Client() as from_environment:
        assert from_environment.predict("goal").label


def test_the_asyncio_client_does_the_same(server: Served) -> None:
    async def talk() -> list[str]:
        async with AsyncClient(server.url, api_key=server.keys.api_key) as ratchet:
            one, many, model = await asyncio.gather(
                ratchet.predict("soup"), ratchet.predict_many(["goal", "loan"] * 4, batch=3), ratchet.model()
            )
            assert {one.model_version, *(found.model_version for found in many)} == {model["model_version"]}
            sent = await ratchet.correct(one, "cooking")
            receipts = await asyncio.gather(
                ratchet.rate(one, "up"), ratchet.score(one, 1), ratchet.comment(one, "yes"), ratchet.retract(sent)
            )
            with pytest.raises(RequestRefused):
                await ratchet.correct(one, "astronomy")
            return [receipt.feedback_id for receipt in receipts]

    assert len(set(asyncio.run(talk()))) == 4


class Script:
    """The answers of a service, one an attempt, and the requests it got."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


BUSY = {"error": "700 texts are waiting", "detail": []}


def scripted(script: Script) -> Client:
    return Client("http://ratchet.invalid/", api_key="k", retries=AT_ONCE, transport=httpx.MockTransport(script))


def test_feedback_is_repeated_under_one_id_until_it_is_stored() -> None:
    script = Script(
        httpx.Response(503, json=BUSY, headers={"Retry-After": "0"}),
        httpx.ReadTimeout("slow"),
        httpx.Response(502, text="<html>proxy</html>"),
        httpx.Response(202, json={"feedback_id": "whatever"}),
    )
    with scripted(script) as client:
        receipt = client.correct(SOME_ID, "money")
    assert {json.loads(request.content)["feedback_id"] for request in script.requests} == {receipt.feedback_id}
    assert len(script.requests) == 4


@pytest.mark.parametrize(
    ("answers", "attempts"),
    [
        ([httpx.Response(429, json=BUSY), httpx.ConnectError("refused"), httpx.Response(200, json=[])], 3),
        ([httpx.ReadTimeout("slow")], 1),  # it may have been handled
        ([httpx.Response(502)], 1),
    ],
)
def test_a_prediction_is_repeated_only_if_it_was_not_handled(answers: list[httpx.Response], attempts: int) -> None:
    script = Script(*answers)
    with scripted(script) as client, pytest.raises((Unavailable, RequestRefused, IndexError)):
        client.predict("hello")
    assert len(script.requests) == attempts


def test_a_used_up_token_is_not_repeated_and_a_stranger_is_named() -> None:
    used = {"error": "used too often", "detail": [{"field": "X-Feedback-Token", "message": "at most 3 uses"}]}
    script = Script(httpx.Response(429, json=used), httpx.Response(200, text="<html>"))
    with scripted(script) as client:
        with pytest.raises(RequestRefused, match="used too often"):
            client.rate(SOME_ID, "up")
        with pytest.raises(RequestRefused, match="answered no JSON: check the client's `url`"):
            client.model()


def test_waits_grow_respect_retry_after_and_end() -> None:
    now = 0.0
    attempts = Attempts(Retries(attempts=5, total_s=30, first_s=1, longest_s=3), lambda: now, lambda: 0.5)
    assert [attempts.pause(Trouble("busy", after)) for after in (0, 0, 0, 7)] == [0.5, 1.0, 1.5, 8.5]
    with pytest.raises(Unavailable, match="busy; gave up after 5 attempts"):
        attempts.pause(Trouble("busy"))
    with pytest.raises(Unavailable, match="gave up, 30 s would pass"):
        Attempts(Retries(), lambda: now, lambda: 0.0).pause(Trouble("busy", 31))


def test_an_address_without_a_service_is_unavailable() -> None:
    nobody = Client(f"http://127.0.0.1:{free_port()}", retries=AT_ONCE)
    with nobody, pytest.raises(Unavailable, match=r"GET /model: ConnectError.*gave up after 4 attempts"):
        nobody.model()


# --- people who come from elsewhere -------------------------------------------------------------------------------------

METRICS = {
    "solved": Metric("boolean"),
    "escalated": Metric("boolean", optimize="min"),
    "stars": Metric("float", lowest=1, highest=5),
    "edits": Metric("float", optimize="min", highest=10),
}


@pytest.mark.parametrize(
    ("metric", "value", "kind", "sent"),
    [
        ("solved", True, "rating", "up"),
        ("escalated", True, "rating", "down"),
        ("stars", 4, "score", 0.75),
        ("edits", 2.5, "score", 0.75),
        ("comment", "too slow", "comment", "too slow"),
        ("demonstration", "money", "correction", "money"),
        ("demonstration", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "correction", "a\nb"),
        ("demonstration", {"label": "x"}, "correction", '{"label": "x"}'),
    ],
)
def test_tensorzero_feedback_has_a_counterpart(metric: str, value: object, kind: str, sent: object) -> None:
    assert feedback_of(metric, value, METRICS) == (kind, sent)


@pytest.mark.parametrize(
    ("metric", "value", "reason"),
    [
        ("unheard_of", 1, "expected comment, demonstration or one of: edits, escalated, solved, stars"),
        ("solved", 1, "expected true or false"),
        ("stars", 9, "expected a number from 1 to 5, got 9"),
        ("stars", True, "expected a number"),
        ("demonstration", [{"type": "tool_call"}], "content blocks of type text"),
    ],
)
def test_tensorzero_feedback_without_counterpart_says_so(metric: str, value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        feedback_of(metric, value, METRICS)


def test_tensorzero_feedback_reaches_ratchet(client: Client) -> None:
    prediction = client.predict("loan")
    gateway = TensorZeroFeedback(client, METRICS, demonstration=lambda value: str(value["label"]))
    for name, value in (("solved", True), ("stars", 5.0), ("comment", "ok"), ("demonstration", {"label": "money"})):
        sent = gateway.feedback(
            metric_name=name, value=value, inference_id=prediction.prediction_id, tags={"user_id": "u"}
        )
        assert sent is not None
        assert sent.user == "u"
    assert gateway.feedback(metric_name="solved", value=True, inference_id=SOME_ID, dryrun=True) is None
    with pytest.raises(ValueError, match="got episode_id e"):
        gateway.feedback(metric_name="solved", value=True, episode_id="e")


def openpipe_log(asked: str, answer: object, **tags: str) -> dict[str, object]:
    messages = [{"role": "system", "content": "Classify."}, {"role": "user", "content": asked}]
    choices = [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]
    return {"input": {"model": "openpipe:x", "messages": messages}, "output": {"choices": choices}, "tags": tags}


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_openpipe_logs_become_a_seed_that_ratchet_reads(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [openpipe_log(f"where is it {n}", " arrival\n", channel="ios") for n in range(3)]
    tool_call = openpipe_log("weather", None)
    error = {"input": {"messages": []}, "output": {"error": "rate limit"}, "tags": {}}
    (tmp_path / "logs.jsonl").write_text(
        "\n".join([*map(json.dumps, [*logs, tool_call, error]), "{", ""]), encoding="utf-8"
    )
    assert openpipe([str(tmp_path / "logs.jsonl"), str(tmp_path / "seed.jsonl"), "--task", task]) == 0
    printed = capsys.readouterr().out
    for part in ("3 rows", "1 (the answer has no text)", "1 (no answer in `output`)", "1 (not JSON)"):
        assert part in printed
    rows = read_rows(tmp_path / "seed.jsonl", task)  # type: ignore[arg-type]
    assert len(rows) == 3


# --- the distribution ---------------------------------------------------------------------------------------------------


def test_the_wheel_is_typed_and_needs_httpx_alone(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(DISTRIBUTION), str(source)], check=True)
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        [metadata] = [name for name in names if name.endswith("METADATA")]
        requires = [line for line in opened.read(metadata).decode().splitlines() if line.startswith("Requires-")]
    assert "ratchet_client/py.typed" in names
    assert requires == ["Requires-Python: >=3.10", "Requires-Dist: httpx>=0.25"]


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("file", sorted(DISTRIBUTION.rglob("*.py")), ids=lambda file: file.name)
def test_the_client_imports_nothing_but_httpx(file: Path) -> None:
    assert set(imports_of(file)) <= {"httpx", "ratchet_client", *sys.stdlib_module_names}
