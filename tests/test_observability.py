"""Metrics of all processes and JSON logs: what they show, and that their labels stay bounded."""

import json
import logging
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from schemas.events import utc_now
from schemas.records import Champion, RoundRecord, RoundState
from schemas.reports import GateReport, GateResult, Verdict
from services.ingestion.metrics import wilson
from services.scheduling.metrics import SchedulerMetrics
from serving.http.front import METRICS_FRESH_S
from serving.http.metrics import MOST_LABELS, Metrics
from serving.inference.encoder_runtime import Runtime
from serving.process.log_lines import formatter
from serving.process.metrics_endpoint import serve_metrics
from tests.support.fakes import free_port
from tests.support.served import Served, make_project, served
from tests.support.versions import copied

SAMPLE = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


def samples(text: str) -> dict[tuple[str, str], float]:
    """Return each series' value by name and labels, without the label `model`."""
    found = {}
    for name, labels, value in SAMPLE.findall(text):
        kept = sorted(part for part in re.findall(r'\w+="[^"]*"', labels) if not part.startswith(("model=", "pid=")))
        found[name, ",".join(kept)] = float(value)
    return found


def fresh_samples(client: httpx.Client) -> dict[tuple[str, str], float]:
    """Return what a worker shows now: an answer of /metrics is sent again for METRICS_FRESH_S."""
    time.sleep(METRICS_FRESH_S)
    return samples(client.get("/metrics").text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("observed") / "project"
    config = make_project(root, version, workers=1)
    config.write_text(config.read_text(encoding="utf-8") + '[observability]\nlog_format = "json"\n', encoding="utf-8")
    with served(config) as running:
        yield running


def test_a_worker_shows_requests_predictions_and_its_version(server: Served) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": server.header}) as client:
        before = fresh_samples(client)
        answer = client.post("/predict", json={"items": [{"text": "oven"}]})
        assert answer.status_code == 200, answer.text
        [found] = answer.json()
        client.post("/predict/", json={"items": [{"text": "oven"}, {"text": "goal"}]})
        client.post("/predict", json={"items": []})
        for n in range(30):
            client.get(f"/{n}", headers={"traceparent": f"{n}"})
        client.post("/feedback", json={"prediction_id": found["prediction_id"], "kind": "rating", "value": "up"})
        assert client.get("/model").status_code == 200
        shown = fresh_samples(client)
    grown = {series: value - before.get(series, 0) for series, value in shown.items()}
    assert grown["ratchet_requests_total", 'route="/predict",status="200"'] == 2
    assert grown["ratchet_requests_total", 'route="/predict",status="422"'] == 1
    assert grown["ratchet_requests_total", 'route="other",status="404"'] == 30
    assert grown["ratchet_request_seconds_count", 'route="/feedback"'] == 1
    assert grown["ratchet_confidence_count", ""] == 3
    assert sum(value for (name, _), value in grown.items() if name == "ratchet_predicted_labels_total") == 3
    assert grown["ratchet_batch_texts_sum", ""] == 3
    assert shown["ratchet_queue_texts", ""] == 0
    assert shown["ratchet_model_version", 'model_version="v"'] == 1
    assert shown["ratchet_swap_seconds_count", ""] == 1
    assert grown["ratchet_feedback_total", 'kind="rating"'] == 1
    assert len([series for series in shown if series[0] == "ratchet_requests_total"]) < 10


def test_a_workers_log_is_json_without_a_users_text(server: Served) -> None:
    secret = "the oven of Bartholomew"
    httpx.post(f"{server.url}/predict", json={"items": [{"text": secret}]}, headers={"Authorization": server.header})
    lines = server.log.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert any(record["logger"] == "ratchet.live" and "serving v" in record["message"] for record in records)
    assert not [line for line in lines if "Bartholomew" in line]


def test_labels_beyond_the_first_hundred_are_counted_as_other(version: Path, tmp_path: Path) -> None:
    metrics = Metrics("m", CollectorRegistry())
    metrics.predicted({"label": "before any version"}, 0.5)
    labels = ["cooking", "football", "money"]
    loaded = Runtime(copied(version, tmp_path / "v"))
    many = loaded.manifest.model_copy(update={"labels": [*labels, *(f"label {n}" for n in range(300))]})
    loaded.manifest = many
    champion = Champion(
        model_version="v2", digest="0" * 64, generation=2, promoted_at=utc_now(), round_id=None, actor="test"
    )
    metrics.swapped(loaded, champion, 0.1)
    for label in many.labels:
        metrics.predicted({"label": label}, 0.5)
    metrics.predicted({"labels": ["money", "nobody"]}, 0.5)
    shown = samples(generate_latest(metrics.registry).decode())
    counted = {labels: value for (name, labels), value in shown.items() if name == "ratchet_predicted_labels_total"}
    assert len(counted) == MOST_LABELS + 1
    assert counted['label="other"'] == 303 - MOST_LABELS + 2
    assert counted['label="money"'] == 2


def judged(number: int, state: RoundState, verdict: Verdict) -> RoundRecord:
    begun = utc_now() + timedelta(minutes=number)
    result = GateResult(gate="superiority", verdict=verdict, sentence="s")
    report = GateReport(verdict=verdict, results=[result], policy_sha256="0", look=number)
    return RoundRecord(
        round_id=f"r{number}",
        model_name="m",
        state=state,
        reason="test",
        gate_report=report,
        created_at=begun,
        started_at=begun,
        finished_at=begun + timedelta(seconds=90),
    )


def test_the_scheduler_shows_rounds_and_verdicts_on_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PROMETHEUS_MULTIPROC_DIR",
        "prometheus_multiproc_dir",
    ):  # BentoML sets them in a process that imports it
        monkeypatch.delenv(name, raising=False)
    rounds = [judged(1, RoundState.PROMOTED, Verdict.PASS), judged(2, RoundState.REJECTED, Verdict.FAIL)]
    now, reads = 0.0, []

    def read() -> list[RoundRecord]:
        reads.append(now)
        if now == 20:
            raise ConnectionError("the registry is away")
        return rounds

    metrics = SchedulerMetrics("m", read, lambda: now)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        taken = serve_metrics(metrics.registry, port)
    assert taken is not None
    assert taken > port
    for now in (0.0, 1.0, 20.0, 21.0):  # noqa: B007  # the clock and `read` see it
        metrics.ticked()
    assert reads == [0.0, 20.0, 21.0]
    shown = samples(urllib.request.urlopen(f"http://127.0.0.1:{taken}/metrics").read().decode())
    assert shown["ratchet_rounds", 'state="promoted"'] == 1
    assert shown["ratchet_rounds", 'state="failed"'] == 0
    assert shown["ratchet_gate", 'gate="superiority"'] == shown["ratchet_gate", 'gate="all"'] == 0
    assert shown["ratchet_round_seconds", ""] == 90
    assert shown["ratchet_ticks_total", ""] == 4


def test_ports_that_are_all_in_use_cost_the_metrics_alone(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert serve_metrics(CollectorRegistry(), port, tried=1) is None
    assert "set another, or 0 for none" in caplog.text


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (5, 10), (99, 100), (10, 10)])
def test_an_interval_of_agreement_holds_its_estimate(hits: int, n: int) -> None:
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=2e-4)  # Newcombe 1998, table I


def test_a_record_is_one_json_object_whatever_it_holds() -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter("json"))
    log = logging.Logger("ratchet.test")
    log.addHandler(handler)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("line\none %s", "\x1b[31m")
    [line] = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"]) == ("error", "ratchet.test")
    assert "\n" not in record["message"]
    assert "\x1b" not in record["message"]
    assert record["trace"][-1].endswith("second")
