"""Feedback over HTTP and feedback from Kafka: one rule, one stored form, whatever is sent."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from pipelines.feature_store.event_rows import BadMessage, read_event
from schemas.events import FeedbackData, FeedbackReceived, PredictionMade
from schemas.setting_groups import ModelSettings
from schemas.settings import Settings
from schemas.targets import Task
from services.ingestion.feedback_gate import FeedbackGate
from serving.http import contract
from serving.http.access import pseudonym, read_keys, write_keys
from serving.http.feedback_values import BadFeedback, FeedbackChecker
from serving.registry.registry import Registry

PREDICTION = "01900000-0000-7000-8000-00000000abcd"
TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression", "generation")
KINDS = ("correction", "rating", "score", "comment", "retract")
SECRET_TEXT = "call me on +44 20 7946 0958, account GB33BUKB20201555555555"
# As JSON, because that is what arrives.
VALUES = (
    *(
        '"a"',
        '" a\\u200b"',
        '"gone"',
        '"new"',
        '"up"',
        '"down"',
        '"UP"',
        '""',
        '" "',
        '"\\u0000"',
        '"1"',
        '"0.5"',
        '"NaN"',
    ),
    *("0", "1", "1.0", "-0.0", "0.5", "-1", "7", "1e400", "1" + "0" * 400, "9007199254740993", "true", "false", "null"),
    *("[]", '["a"]', '["a", "b", "a"]', '["a", 1, true]', '["new"]', '[["a"]]', "[null]", "{}", '{"a": 1}', "NaN"),
    *(json.dumps(SECRET_TEXT), json.dumps("x" * 201), json.dumps("x" * 200), json.dumps(["a"] * 1001), '"\\ud800"'),
    *(json.dumps(PREDICTION.upper()), json.dumps("x" * 129)),
)


class Doors:
    """Both doors of one project."""

    def __init__(self, root: Path, task: Task) -> None:
        settings = Settings.model_validate(
            {"root": root, "model": ModelSettings(name="m", task=task), "serving": {"max_text_chars": 200}}
        )
        write_keys(root / "keys.env")
        self.secret = read_keys(root / "keys.env").secret
        self.registry = Registry(settings.registry_url, "m")
        self.registry.migrate()
        if task in ("classification", "multilabel"):
            self.registry.set_labels(["a", "b", "1", "True", "up", "gone"])
        self.labels = self.registry.label_map()
        self.gate = FeedbackGate(settings, self.registry)
        self.gate.refresh()
        self.checker = FeedbackChecker("m", task, secret=lambda: self.secret, max_chars=200, labels=lambda: self.labels)

    def http(self, body: str) -> FeedbackData | None:
        """What POST /feedback would publish; None for a refusal."""
        try:
            request = contract.read(body.encode("utf-8", "surrogatepass"), contract.FeedbackRequest, 50)
            given = FeedbackData(model_name="m", **request.model_dump())
            return self.checker.checked(given)
        except (contract.NotJson, contract.NotValid, BadFeedback):
            return None

    def kafka(self, value: bytes, headers: tuple[tuple[str, bytes], ...] = ()) -> FeedbackData | None:
        """What the consumer would store; None for a dead letter."""
        try:
            event = self.gate.check(read_event(value, "feedback", headers))
        except BadMessage:
            return None
        assert isinstance(event, FeedbackReceived)
        return event.data


@pytest.fixture(scope="module", params=TASKS)
def doors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    made = Doors(tmp_path_factory.mktemp("doors"), request.param)
    yield made
    made.registry.close()


def body(kind: str, value: str, **changes: str) -> str:
    fields = {"prediction_id": PREDICTION, "feedback_id": "mine", "kind": kind, "user": "bob"} | changes
    return json.dumps(fields)[:-1] + f', "value": {value}}}'


def event(data: str) -> bytes:
    envelope = {
        "specversion": "1.0",
        "type": "ratchet.feedback.received.v1",
        "id": "1",
        "source": "https://example.org/app",
        "subject": PREDICTION,
    }
    return (json.dumps(envelope)[:-1] + ', "data": {"model_name": "m", ' + data[1:] + "}").encode(
        "utf-8", "surrogatepass"
    )


def binary(data: str) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    headers = {
        "ce_specversion": "1.0",
        "ce_type": "ratchet.feedback.received.v1",
        "ce_source": "https://example.org/app",
        "ce_id": "1",
        "ce_subject": PREDICTION,
        "ce_time": "2026-11-24T12:00:00+01:00",
        "content-type": "application/json; charset=utf-8",
    }
    value = ('{"model_name": "m", ' + data[1:]).encode("utf-8", "surrogatepass")
    return value, tuple((name, content.encode()) for name, content in headers.items())


def test_every_value_of_every_kind_is_stored_alike_or_refused_by_both(doors: Doors) -> None:
    stored = 0
    for kind in (*KINDS, "praise"):
        for value in VALUES:
            sent = body(kind, value)
            over_http = doors.http(sent)
            assert doors.kafka(event(sent)) == over_http, sent
            assert doors.kafka(*binary(sent)) == over_http, sent
            stored += over_http is not None
    assert stored > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"user": ""},
        {"user": "u" * 256},
        {"user": "u" * 257},
        {"user": "d41d8cd98f00b204e9800998ecf8427e"},
        {"feedback_id": ""},
        {"feedback_id": "f" * 128},
        {"feedback_id": "f" * 129},
        {"feedback_id": "bob@example.org"},
        {"feedback_id": str(uuid.UUID(int=5)).upper()},
        {"prediction_id": PREDICTION.upper()},
        {"prediction_id": "p1"},
        {"prediction_id": ""},
    ],
)
def test_ids_and_users_too(doors: Doors, changes: dict[str, str]) -> None:
    sent = body("comment", '"fine"', **changes)
    over_http = doors.http(sent)
    assert doors.kafka(event(sent)) == over_http
    assert doors.kafka(*binary(sent)) == over_http


def test_what_a_stranger_writes_is_stored_without_what_identifies_a_person(doors: Doors) -> None:
    stored = doors.kafka(event(body("comment", json.dumps(SECRET_TEXT))))
    assert stored is not None
    assert stored.value == "call me on <PHONE>, account <IBAN>"
    assert stored.user == pseudonym(doors.secret, "bob")


def test_a_prediction_by_a_stranger_is_anonymised_pseudonymised_and_of_this_model(doors: Doors) -> None:
    data = {
        "prediction_id": PREDICTION.upper(),
        "model_name": "m",
        "model_version": "v",
        "generation": 1,
        "text": SECRET_TEXT,
        "label": "a",
        "confidence": 0.5,
        "user": "d41d8cd98f00b204e9800998ecf8427e",
        "metadata": {"mail": "bob@example.org"},
    }
    made = PredictionMade(source="https://example.org/app", subject="s", data=data)
    checked = doors.gate.check(read_event(made.model_dump_json().encode(), "predictions"))
    assert isinstance(checked, PredictionMade)
    assert (checked.data.prediction_id, checked.subject) == (PREDICTION, PREDICTION)
    assert checked.data.text == "call me on <PHONE>, account <IBAN>"
    assert checked.data.metadata == {"mail": "<EMAIL>"}
    assert checked.data.user == pseudonym(doors.secret, str(data["user"]))
    another = made.model_copy(update={"data": made.data.model_copy(update={"model_name": "another"})})
    with pytest.raises(BadMessage, match="expected m"):
        doors.gate.check(another)


def test_an_event_behind_a_byte_order_mark_is_read(doors: Doors) -> None:
    sent = body("rating", '"up"')
    for value, headers in ((event(sent), ()), binary(sent)):
        assert doors.kafka(b"\xef\xbb\xbf" + value, headers) == doors.http(sent) is not None


@pytest.mark.parametrize(
    ("content_type", "reason"),
    [
        (
            "application/cloudevents-batch+json",
            "application/cloudevents-batch.json: expected application/cloudevents.json",
        ),
        ("application/cloudevents+avro", "expected application/cloudevents.json"),
        ("text/xml", "expected application/json in binary mode"),
    ],
)
def test_a_form_that_is_not_read_is_refused_by_name(content_type: str, reason: str) -> None:
    value, headers = binary(body("rating", '"up"'))
    with pytest.raises(BadMessage, match=reason):
        read_event(value, "feedback", (*headers[:-1], ("content-type", content_type.encode())))


@pytest.mark.parametrize("value", [b"{", b"\xff\xfe", b"[" * 100_000, b"", b"null", b"[]", b'{"type": 1}'])
@pytest.mark.parametrize("missing", [None, "ce_type", "ce_source", "ce_subject"])
def test_binary_mode_never_raises_anything_but_a_bad_message(value: bytes, missing: str | None) -> None:
    headers = [(name, content) for name, content in binary(body("rating", '"up"'))[1] if name != missing]
    with pytest.raises(BadMessage):
        read_event(value, "feedback", headers)


def test_the_data_of_binary_mode_cannot_replace_an_attribute() -> None:
    value, headers = binary(body("rating", '"up"'))
    smuggled = orjson.dumps(orjson.loads(value) | {"source": "ratchet/m/serving"})
    assert read_event(smuggled, "feedback", headers).source == "https://example.org/app"
    assert read_event(value, "feedback", headers).time.utcoffset() is not None
