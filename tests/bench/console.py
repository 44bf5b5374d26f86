"""How quick the console is over a large store: 10,000 rounds, 1,000,000 feedback rows, 200 versions.

Makes the store without training anything, serves the console from a process of its own, and asks for every page. Prints a
table and writes bench-console.json. Run it by `make bench-console`.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
import sqlalchemy as sa

from pipelines.feature_store.event_log import SCHEMAS, EventLog
from schemas.events import new_id
from schemas.records import RoundRecord, RoundState
from schemas.reports import EvaluationReport, GateReport, GateResult, Measure, Verdict
from schemas.settings import Settings, load_settings
from services.console.people import operator_key
from serving.http.access import write_keys
from serving.registry import tables as t
from serving.registry.database import iso
from serving.registry.registry import Registry
from tests.bench.report import Figure, write
from tests.support.fakes import REPOSITORY, TOPICS, free_port
from tests.support.manifests import manifest

ROUNDS, FEEDBACK, VERSIONS = 10_000, 1_000_000, 200
CHUNK = 100_000
PAGE_S, FIRST_BYTES = 0.5, 150_000
REPEATS = 5


def main() -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-console-") as scratch:
        settings = make_store(Path(scratch))
        figures = measure(settings)
    write("console", figures)


def make_store(root: Path) -> Settings:
    """Write a project whose registry and event log are as large as after years."""
    port = free_port()
    text = f'[model]\nname = "m"\n[console]\nport = {port}\n'
    (root / "ratchet.toml").write_text(text, encoding="utf-8")
    settings = load_settings(text, {}, root=root)
    write_keys(root / "keys.env")
    with contextlib.closing(Registry(settings.registry_url, "m")) as registry:
        registry.migrate()
        registry.set_labels(TOPICS)
        fill_registry(registry)
    fill_log(settings)
    return settings


def fill_registry(registry: Registry) -> None:
    """Add rounds with reports of real size, versions, promotions and audit rows."""
    begun = datetime.now(UTC) - timedelta(minutes=ROUNDS)
    names = [f"20260101-{n:06d}-abcdef" for n in range(VERSIONS)]
    records = [_record(n, begun + timedelta(minutes=n), names) for n in range(ROUNDS)]
    promoted = [record for record in records if record.state is RoundState.PROMOTED]
    for name, record in zip(names, promoted, strict=False):
        made = manifest(name, model_name="m").model_copy(update={"round_id": record.round_id})
        registry.register_version(made, f"{abs(hash(name)):064x}"[-64:], servable=True)
    with registry.database.write() as connection:
        rows = [
            {
                "round_id": record.round_id, "model_name": "m", "sequence": n + 1, "state": record.state.value,
                "record": record.model_dump_json(),
            }
            for n, record in enumerate(records)
        ]  # fmt: skip
        connection.execute(t.rounds.insert(), rows)
        connection.execute(
            t.promotions.insert(),
            [
                {
                    "model_name": "m", "generation": n + 1, "model_version": name, "digest": "0" * 64,
                    "promoted_at": iso(record.created_at), "round_id": record.round_id, "actor": "gates",
                }
                for n, (name, record) in enumerate(zip(names, promoted, strict=False))
            ],
        )  # fmt: skip
        connection.execute(t.versions.update().where(sa.true()).values(state="retired"))
    for n in range(0, ROUNDS, 5):
        registry.audit("gates", "note", {"round": records[n].round_id, "n": n})


def _record(n: int, at: datetime, names: list[str]) -> RoundRecord:
    each = ROUNDS // VERSIONS
    promoted = n % each == 0
    state = RoundState.PROMOTED if promoted else RoundState.REJECTED if n % 2 else RoundState.INSUFFICIENT
    measure = Measure(value=0.8 + n / ROUNDS / 10, low=0.75, high=0.9, null=0.8, null_99=0.9)
    evaluation = EvaluationReport(
        model_version=names[n // each], split="reference", n=500, accuracy=measure.value, nll=0.4, ece=0.02,
        ece_null_99=0.04, measures=dict.fromkeys(("accuracy", "nll", "brier", "ece", "classwise_ece"), measure),
    )  # fmt: skip
    gates = [
        GateResult(
            gate=f"gate {k}", verdict=Verdict.PASS, observed=0.1, threshold=0.2, n=500, sentence="a sentence " * 12
        )
        for k in range(12)
    ]
    report = GateReport(verdict=Verdict.PASS, results=gates, policy_sha256="0" * 64, look=1)
    return RoundRecord(
        round_id=new_id(), model_name="m", state=state, reason="200 of 200 labelled feedback since the last round",
        candidate_version=names[n // each], champion_version=names[max(0, n // each - 1)], gate_report=report,
        evaluations={"candidate": evaluation, "champion": evaluation, "probe": evaluation}, detail="ended",
        created_at=at, started_at=at, finished_at=at + timedelta(seconds=50),
    )  # fmt: skip


def fill_log(settings: Settings) -> None:
    """Store a million predictions and feedback, the newest from this minute."""
    log, now = EventLog(settings.location(settings.feature_store.event_log)), datetime.now(UTC)
    draw, labels = np.random.default_rng(0), list(TOPICS)
    words = np.array([word for topic in TOPICS.values() for word in topic])
    for start in range(0, FEEDBACK, CHUNK):
        numbers = range(start, start + CHUNK)
        times = [now - timedelta(seconds=(FEEDBACK - n) * 0.5) for n in numbers]
        common = {
            "topic_id": ["t"] * CHUNK, "partition": [0] * CHUNK, "offset": list(numbers), "event_timestamp": times,
            "created_timestamp": times, "prediction_id": [f"{n:032x}" for n in numbers],
            "user": [f"{n % 5000:032x}" for n in numbers],
        }  # fmt: skip
        texts = [" ".join(row) for row in words[draw.integers(0, len(words), (CHUNK, 12))]]
        predictions = {
            **common, "model_version": ["v"] * CHUNK, "generation": [1] * CHUNK, "text": texts,
            "predicted_label": [labels[n % 3] for n in numbers], "confidence": [0.7] * CHUNK,
            "probabilities": ["{}"] * CHUNK, "metadata": ["{}"] * CHUNK, "audit": [False] * CHUNK,
        }  # fmt: skip
        feedback = {
            **common, "feedback_id": [f"f{n:031x}" for n in numbers], "kind": ["correction"] * CHUNK,
            "value": [f'"{labels[(n // 7) % 3]}"' for n in numbers],
        }  # fmt: skip
        for name, rows in (("predictions", predictions), ("feedback", feedback)):
            log.append(name, pa.Table.from_pydict(rows, schema=SCHEMAS[name]))


def measure(settings: Settings) -> list[Figure]:
    """Return the figures: seconds of each page, the median of REPEATS, and the bytes of the first page with its files."""
    url = f"http://127.0.0.1:{settings.console.port}"
    command = [sys.executable, "-m", "services.console_server", "-c", str(settings.root / "ratchet.toml")]
    process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            _await(client)
            key = operator_key(settings.path("keys.env"))
            assert client.post("/sign-in", data={"key": key}).status_code == 303
            figures = [one for name, path in _pages(settings) for one in _seconds(client, name, path, process.pid)]
            return [*figures, _bytes(client)]
    finally:
        process.terminate()
        process.wait(20)


def _pages(settings: Settings) -> list[tuple[str, str]]:
    with contextlib.closing(Registry(settings.registry_url, "m")) as registry:
        record = registry.history.rounds_page(limit=1)[0][1]
        version = registry.versions()[0].model_version
    user = f"{17:032x}"
    return [
        ("overview", "/"), ("rounds", "/rounds"), ("rounds, page 100", "/rounds?before=6000"),
        ("rounds, promoted", "/rounds?state=promoted"), ("review", f"/rounds/{record.round_id}"), ("queue", "/queue"),
        ("models", "/models"), ("model", f"/models/{version}"), ("feedback", "/feedback"),
        ("feedback by words", "/feedback?q=striker+oven"), ("feedback by absent words", "/feedback?q=in+no+text"),
        ("feedback of a person", f"/feedback?user={user}"),
        ("one person", f"/feedback/people/{user}"), ("quarantine", "/feedback/quarantine"),
        ("orphans", "/feedback/orphans"), ("audit", "/audit"), ("try", "/try"),
    ]  # fmt: skip


def _seconds(client: httpx.Client, name: str, path: str, pid: int) -> list[Figure]:
    """Measure a page: seconds, and CPU seconds of the console, which other work on the machine moves less."""
    took, cpu = [], []
    for _ in range(REPEATS + 1):
        began, used = time.perf_counter(), _cpu_s(pid)
        answer = client.get(path)
        took.append(time.perf_counter() - began)
        cpu.append(_cpu_s(pid) - used)
        assert answer.status_code == 200, (path, answer.text[:500])
    return [_median(f"{name}: seconds", took), _median(f"{name}: CPU seconds", cpu)]


def _median(figure: str, values: list[float]) -> Figure:
    first, *others = values
    between = (min(others), max(others))
    return Figure(
        figure=figure, value=statistics.median(others), op="<=", target=PAGE_S, n=REPEATS, interval=between, baseline=first
    )  # fmt: skip


def _cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _bytes(client: httpx.Client) -> Figure:
    page = client.get("/")
    files = [part.split('"')[0] for part in page.text.split('="/static/')[1:]]
    total = len(page.content) + sum(len(client.get(f"/static/{name}").content) for name in files)
    return Figure(figure="first page with its files: bytes", value=total, op="<=", target=FIRST_BYTES, n=1)


def _await(client: httpx.Client) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if client.get("/livez").status_code == 200:
                return
        if time.monotonic() > deadline:
            raise TimeoutError("the console did not start within 120 s")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
