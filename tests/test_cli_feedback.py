"""`ratchet feedback export` and `replay` through the command line, on a real log and a real broker."""

import contextlib
import csv
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.dataset.files import read_rows
from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.event_rows import row_of
from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.events import FeedbackReceived, PredictionMade
from schemas.settings import Settings
from services.cli.main import cli
from services.ingestion.dead_letters import dead_letter
from serving.http.access import pseudonym, read_keys, write_keys
from serving.messaging.connection import Broker
from serving.messaging.publisher import Message, Outgoing, Publisher, Topics, ensure_topics
from serving.registry.registry import Registry
from tests.support.events import feedback, fid, outgoing, pid, prediction
from tests.support.kafka_tools import read_all

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def append(store: FeatureStore, events: Sequence[PredictionMade | FeedbackReceived]) -> None:
    name = "predictions" if isinstance(events[0], PredictionMade) else "feedback"
    made = [row_of(event, START, name, 0, n) for n, event in enumerate(events)]
    store.log.append(name, pa.Table.from_pylist(made, schema=SCHEMAS[name]))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "ratchet.toml").write_text('[model]\nname = "shop"\n', encoding="utf-8")
    with contextlib.closing(Registry(Settings(root=tmp_path).registry_url, "shop")) as registry:
        registry.migrate()
        registry.set_labels(["a", "b"])
    (tmp_path / "feature_store.yaml").write_text(default_feature_store_yaml("shop"), encoding="utf-8")
    write_keys(tmp_path / "keys.env")
    bob = pseudonym(read_keys(tmp_path / "keys.env").secret, "bob")
    store = FeatureStore(Settings(root=tmp_path))
    append(store, [prediction(n, version="v1" if n < 3 else "v2", time=START) for n in range(4)])
    said = [
        feedback(0, user=bob, time=START),
        feedback(1, value="a", time=START + timedelta(hours=1)),
        feedback(2, kind="rating", value="down", time=START + timedelta(hours=2)),
        feedback(3, kind="score", value=0.5, time=START + timedelta(hours=3)),
        feedback(4, kind="comment", value="ünïcode\n", time=START + timedelta(hours=4)),
        feedback(1, feedback_id="gone", kind="rating", value="up", time=START),
        feedback(1, feedback_id="r", kind="retract", value="gone", time=START),
    ]
    append(store, said)
    return tmp_path / "ratchet.toml"


def exported(config: Path, *options: str, name: str = "out.jsonl") -> list[dict[str, Any]]:
    out = config.parent / name
    run = CliRunner().invoke(cli, ["feedback", "export", "--out", str(out), *options, "-c", str(config), "--json"])
    assert run.exit_code == 0, run.output
    rows = pq.read_table(out).to_pylist() if name.endswith("parquet") else list(map(json.loads, out.open()))
    assert json.loads(run.stdout)["rows"] == len(rows)
    assert not list(config.parent.glob(f".{name}*"))
    return rows


def test_export_writes_one_line_per_effective_feedback_orphans_included(config: Path) -> None:
    rows = exported(config)
    assert [row["feedback_id"] for row in rows] == [fid(n) for n in range(5)]
    assert rows[1] | {"metadata": None} == {
        "feedback_id": fid(1),
        "prediction_id": pid(1),
        "kind": "correction",
        "value": "a",
        "user": None,
        "text": "text 1",
        "label": "a",
        "time": "2026-03-01T13:00:00+00:00",
        "predicted_label": "a",
        "model_version": "v1",
        "metadata": None,
    }
    assert rows[1]["metadata"] == {"channel": "ios"}
    assert rows[3]["value"] == 0.5
    assert (rows[4]["value"], rows[4]["text"], rows[4]["model_version"]) == ("ünïcode\n", None, None)


def test_parquet_holds_the_same(config: Path) -> None:
    lines, rows = exported(config), exported(config, name="out.parquet")
    assert [row["value"] for row in rows] == ["b", "a", "down", "0.5", "ünïcode\n"]
    assert [row["time"] for row in rows] == [datetime.fromisoformat(line["time"]) for line in lines]
    assert all(row[key] == line[key] for row, line in zip(rows, lines, strict=True) for key in ("text", "user", "kind"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--user", "bob"], [0]),
        (["--label", "b"], [0]),
        (["--label", "a"], [1, 2, 3]),
        (["--model-version", "v2"], [3]),
        (["--since", "2026-03-01T14:00:00Z"], [2, 3, 4]),
        (["--until", "2026-03-01T13:00", "--model-version", "v1"], [0]),
        (["--user", "nobody"], []),
        (["--labelled"], [0, 1]),
    ],
)
def test_filters_choose(config: Path, options: list[str], expected: list[int]) -> None:
    assert [row["feedback_id"] for row in exported(config, *options)] == [fid(n) for n in expected]


def test_a_csv_runs_nothing_in_a_spreadsheet_and_an_export_is_a_seed(config: Path) -> None:
    store = FeatureStore(Settings(root=config.parent))
    texts = ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@SUM(1)", "\tx", 'plain, "quoted"\nline', "-3.5", "\uff1d1"]
    made = [prediction(10 + n, text=text, time=START) for n, text in enumerate(texts)]
    rows = [row_of(event, START, "P2", 0, n) for n, event in enumerate(made)]
    store.log.append("predictions", pa.Table.from_pylist(rows, schema=SCHEMAS["predictions"]))
    given = [feedback(10 + n, value="ab"[n % 2], time=START) for n in range(len(texts))]
    rows = [row_of(event, START, "F2", 0, n) for n, event in enumerate(given)]
    store.log.append("feedback", pa.Table.from_pylist(rows, schema=SCHEMAS["feedback"]))
    out = config.parent / "out.csv"
    run = CliRunner().invoke(cli, ["feedback", "export", "--out", str(out), "-c", str(config), "--labelled"])
    assert run.exit_code == 0, run.output
    with out.open(encoding="utf-8", newline="") as file:
        written = {row["feedback_id"]: row["text"] for row in csv.DictReader(file)}
    shown = [written[fid(10 + n)] for n in range(len(texts))]
    assert shown == ["'=HYPERLINK(1)", "'+1+cmd", "'-2+3", "'@SUM(1)", "'\tx", texts[5], "-3.5", "'\uff1d1"]
    assert all(row.label in ("a", "b") for row in read_rows(out, "classification"))
    for name in ("out.jsonl", "out.parquet"):
        exported(config, "--labelled", name=name)
        found = read_rows(config.parent / name, "classification")
        assert len(found) == len(texts) + 2
        assert {row.label for row in found} == {"a", "b"}
    exported(config, "--format", "jsonl", name="out.jsonl")


def test_no_feedback_is_an_empty_file_and_a_line_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "ratchet.toml").write_text('[model]\nname = "shop"\n', encoding="utf-8")
    (tmp_path / "feature_store.yaml").write_text(default_feature_store_yaml("shop"), encoding="utf-8")
    write_keys(tmp_path / "keys.env")
    settings = Settings(root=tmp_path)
    with contextlib.closing(Registry(settings.registry_url, "shop")) as registry:
        registry.migrate()
    for name, rows in (("a.jsonl", 0), ("a.csv", 1), ("a.parquet", None)):
        out = tmp_path / name
        run = CliRunner().invoke(cli, ["feedback", "export", "--out", str(out), "-c", str(tmp_path / "ratchet.toml")])
        assert (run.exit_code, run.stdout) == (0, f"there is no feedback yet: 0 rows in {out}\n"), run.output
        assert rows is None or len(out.read_text(encoding="utf-8").splitlines()) == rows
    chosen = ["--since", "2026-01-01", "--user", "u", "--label", "a", "--model-version", "v", "--labelled"]
    arguments = ["feedback", "export", "--out", str(out), "-c", str(tmp_path / "ratchet.toml"), *chosen]
    run = CliRunner().invoke(cli, arguments)
    assert (run.exit_code, run.stdout) == (0, f"there is no feedback yet: 0 rows in {out}\n"), run.output


@pytest.mark.parametrize("options", [["--out", "x.xlsx"], ["--out", "x.jsonl", "--since", "yesterday"], []])
def test_wrong_usage_is_said_and_writes_nothing(config: Path, options: list[str]) -> None:
    run = CliRunner().invoke(cli, ["feedback", "export", *options, "-c", str(config)])
    assert run.exit_code == 2
    assert "Error" in run.output


def test_replay_publishes_a_dead_letter_with_its_key_and_headers(
    config: Path, broker: str, model_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_KAFKA__BOOTSTRAP_SERVERS", broker)
    monkeypatch.setenv("RATCHET_MODEL__NAME", model_name)
    topics = Topics.of(model_name)
    ensure_topics(Broker(broker), topics.names(), partitions=2, replication_factor=1, timeout_s=30)
    publisher = Publisher(Broker(broker), timeout_s=30)
    good = outgoing(topics, feedback(0, model_name=model_name))
    with contextlib.closing(Registry(Settings(root=config.parent).registry_url, model_name)) as registry:
        registry.set_labels(["b"])
    letter = dead_letter(
        topics, Message(good.topic, 1, 7, good.key, good.value, (("trace", b"1"),)), "id/1", "was not known yet"
    )
    publisher.publish_many([letter, letter, Outgoing(topics.dead_letters, b"", b"junk", letter.headers[:1])])
    publisher.close()
    for published in (1, 0):
        run = CliRunner().invoke(cli, ["feedback", "replay", "--dlq", "-c", str(config), "--json"])
        assert run.exit_code == 0, run.output
        assert json.loads(run.stdout) == {"published": published, "still_bad": 1, "in_the_log": 0}
    (record,) = read_all(broker, topics.feedback)
    assert (record.key, record.value, record.headers) == (good.key, good.value, [("trace", b"1")])
    refused = CliRunner().invoke(cli, ["feedback", "replay", "-c", str(config)])
    assert refused.exit_code == 2
