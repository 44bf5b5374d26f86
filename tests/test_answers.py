"""Answers and events are the same numbers, and the event's bytes are what schemas/events.py would have written."""

import json
from pathlib import Path

import numpy as np

from schemas.events import PredictionMade, parse_event
from serving.http.access import check_token
from serving.http.responses import ResponseBuilder
from serving.inference.batching import EncoderResult
from serving.inference.encoder_runtime import Runtime
from tests.support.versions import copied

TEXTS = ['the "oven" and\nthe soup', "čaj ☕ of the bank"]
METADATA: list[dict[str, str]] = [{"channel": "ios"}, {}]


def test_an_event_is_what_the_schema_writes_and_says_what_was_answered(version: Path, tmp_path: Path) -> None:
    runtime = Runtime(copied(version, tmp_path / "v", labels=["100 % sure", 'a "b"', "č"], golden=_none(version)))
    probabilities = runtime.probabilities(TEXTS)
    builder = ResponseBuilder("m", "ratchet/m/serving", "secret", audit_rate=0.5, token_seconds=60)
    body, events = builder.build(EncoderResult(runtime, 7, probabilities), TEXTS, METADATA, user="u", coverage=0.999999)
    said = json.loads(body)
    for n, ((prediction_id, value), answer) in enumerate(zip(events, said, strict=True)):
        event = parse_event(value)
        assert isinstance(event, PredictionMade)
        assert json.loads(event.model_dump_json()) == json.loads(value)
        assert (event.subject, event.data.prediction_id, answer["prediction_id"]) == (prediction_id,) * 3
        assert (event.data.text, event.data.metadata, event.data.user) == (TEXTS[n], METADATA[n], "u")
        assert (event.data.generation, event.data.model_version) == (7, answer["model_version"])
        assert event.data.probabilities == answer["probabilities"]
        assert list(answer["probabilities"]) == runtime.labels
        assert np.abs(np.array(list(answer["probabilities"].values())) - probabilities[n]).max() < 1e-7
        assert answer["label"] == event.data.label == runtime.labels[probabilities[n].argmax()]
        assert answer["confidence"] == event.data.confidence == max(answer["probabilities"].values())
        assert sum(answer["probabilities"][label] for label in answer["set"]) >= 0.999999
        check_token("secret", prediction_id, answer["feedback_token"])
    assert len({event_id for _, value in events for event_id in (json.loads(value)["id"],)}) == 2


def test_the_audit_sample_is_a_keyed_share(version: Path) -> None:
    runtime = Runtime(version)
    answer = EncoderResult(runtime, 1, np.tile(runtime.probabilities(["text"]), (1000, 1)))
    builder = ResponseBuilder("m", "s", "secret", audit_rate=0.3, token_seconds=60)
    _, events = builder.build(answer, ["text"] * 1000, [{}] * 1000, user=None, coverage=None)
    share = sum(json.loads(value)["data"]["audit"] for _, value in events) / 1000
    assert 0.2 < share < 0.4


def _none(version: Path) -> object:
    from serving.model_directory import read_manifest

    return read_manifest(version).golden.model_copy(update={"texts": [], "probabilities": []})
