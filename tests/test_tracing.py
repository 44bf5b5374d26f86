"""Traces: from a caller's header over the event and its Kafka message to the commit; and what a collector gets."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from schemas.cloudevents import HEADERS, headers_of
from schemas.configuration.observability import ObservabilitySettings
from schemas.events import FeedbackData, FeedbackReceived, parse_event
from services.ingestion.stored_span import stored_span
from serving.http.asgi import Request
from serving.http.cors import Cors
from serving.http.responses import ResponseBuilder
from serving.http.routes import Response, Router
from serving.inference.batching import EncoderResult
from serving.inference.encoder_runtime import Runtime
from serving.messaging.publisher import Message
from serving.process import tracing
from tests.support.fakes import free_port

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
SOMEWHERE = ObservabilitySettings(traces="http://127.0.0.1:1/v1/traces")


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Trace this process into memory; call `tracing.stop_tracing()` before reading."""
    kept = InMemorySpanExporter()
    tracing.start_tracing(SOMEWHERE, service="serving", model="m", share=0.0, exporter=kept)
    kept.shutdown = lambda: None  # type: ignore[method-assign]  # keep what it has
    yield kept
    tracing.stop_tracing()


async def context(_request: Request) -> Response:
    await asyncio.sleep(0)
    return 200, orjson.dumps({"context": tracing.traceparent()})


def client() -> TestClient:
    return TestClient(Router({"/predict": ("GET", context)}, headers=[], cors=Cors([]), max_body_bytes=10))


def test_a_request_continues_its_callers_trace(spans: InMemorySpanExporter) -> None:
    with client() as app:
        found = app.get("/predict", headers={"traceparent": SAMPLED}).json()["context"]
        for ignored in (UNSAMPLED, "nonsense", "00-0-0-01", ""):
            assert app.get("/predict", headers={"traceparent": ignored}).json()["context"] is None
        app.get("/nowhere/" + "x" * 50, headers={"traceparent": SAMPLED})
    tracing.stop_tracing()
    one, other = spans.get_finished_spans()
    assert one.context is not None
    assert one.parent is not None
    assert found == f"00-{TRACE}-{one.context.span_id:016x}-01"
    assert f"{one.parent.span_id:016x}" == PARENT
    assert one.name == "GET /predict"
    assert dict(one.attributes or {})["http.response.status_code"] == 200
    assert other.name == "GET other"


def test_events_and_messages_carry_the_trace(spans: InMemorySpanExporter, version: Path) -> None:
    runtime = Runtime(version)
    builder = ResponseBuilder("m", "ratchet/m/serving", "s", audit_rate=0.5, token_seconds=60)
    data = FeedbackData(feedback_id="f", prediction_id="p", model_name="m", kind="rating", value="up")
    with tracing.span("request", parent=SAMPLED):
        here = tracing.traceparent()
        [(_, made)] = builder.build(
            EncoderResult(runtime, 1, np.array(runtime.probabilities(["a"]))), ["a"], [{}], user=None, coverage=None
        )[1]
        received = FeedbackReceived(source="s", subject="p", data=data, traceparent=here)
    assert here is not None
    for value in (made, received.model_dump_json().encode()):
        assert headers_of(value) == (*HEADERS, ("traceparent", here.encode()))
        assert parse_event(value).traceparent == here
    untraced = FeedbackReceived(source="s", subject="p", data=data).model_dump_json().encode()
    assert headers_of(untraced) == HEADERS
    assert b"traceparent" not in untraced


def test_a_share_of_the_traces_is_kept_whole_and_the_others_are_left_out_whole() -> None:
    kept = InMemorySpanExporter()
    tracing.start_tracing(SOMEWHERE, service="serving", model="m", share=0.5, exporter=kept)
    for _ in range(400):
        with tracing.span("request", parent="") as outer:
            assert (tracing.traceparent() is not None) == outer.is_recording()
            with tracing.span("step") as inner:
                assert inner.is_recording() == outer.is_recording()
            with tracing.span("other request", parent=UNSAMPLED) as other:
                assert not other.is_recording()
        assert tracing.traceparent() is None
    tracing.stop_tracing()
    names = Counter(each.name for each in kept.get_finished_spans())
    assert names["request"] == names["step"]
    assert 130 < names["request"] < 270  # seven standard deviations each way
    assert set(names) == {"request", "step"}


def message(offset: int, *headers: tuple[str, bytes]) -> Message:
    return Message("m.feedback", 0, offset, b"k", b"v", headers)


def test_a_commit_links_to_the_requests_that_it_stores(spans: InMemorySpanExporter) -> None:
    untraced = message(1, ("content-type", b"x"))
    tracing.start_tracing(SOMEWHERE, service="consumer", model="m", exporter=spans)
    with stored_span([untraced]):
        pass
    with stored_span([untraced, message(2, ("traceparent", SAMPLED.encode())), message(3, ("traceparent", b"\xff"))]):
        pass
    tracing.stop_tracing()
    [one] = spans.get_finished_spans()
    assert [f"{link.context.trace_id:032x}" for link in one.links] == [TRACE]
    assert dict(one.attributes or {})["ratchet.positions"] == "{'m.feedback/0': 3}"


def test_nothing_is_traced_unless_a_collector_is_set(version: Path) -> None:
    tracing.start_tracing(ObservabilitySettings(), service="serving", model="m")
    assert not tracing.enabled()
    with client() as app:
        assert app.get("/predict", headers={"traceparent": SAMPLED}).json()["context"] is None


class Collector(BaseHTTPRequestHandler):
    got: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def broken_round() -> None:
    with tracing.span("round", {"n": 3}, links=[SAMPLED]) as span:
        span.add_event("training")
        raise ValueError("broken")


def test_a_collector_gets_otlp(caplog: pytest.LogCaptureFixture) -> None:
    Collector.got = []
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = ObservabilitySettings(traces=f"http://127.0.0.1:{server.server_port}/v1/traces")
        tracing.start_tracing(address, service="round", model="m")
        with pytest.raises(ValueError, match="broken"):
            broken_round()
        tracing.stop_tracing()
        server.shutdown()
    [sent] = Collector.got
    [spans] = sent["resourceSpans"]
    [one] = spans["scopeSpans"][0]["spans"]
    assert {"key": "service.name", "value": {"stringValue": "ratchet-round"}} in spans["resource"]["attributes"]
    assert (one["name"], one["status"]["code"], one["kind"]) == ("round", 2, 1)
    assert one["attributes"] == [{"key": "n", "value": {"intValue": "3"}}]
    assert [event["name"] for event in one["events"]] == ["training", "exception"]
    assert one["links"] == [{"traceId": TRACE, "spanId": PARENT}]
    assert int(one["endTimeUnixNano"]) >= int(one["startTimeUnixNano"])

    away = ObservabilitySettings(traces=f"http://127.0.0.1:{free_port()}/v1/traces")
    tracing.start_tracing(away, service="round", model="m")
    with tracing.span("round"):
        pass
    tracing.stop_tracing()
    assert "1 spans are lost" in caplog.text
