"""`ratchet feedback export` and `replay` through the command line, on a real log and a real broker."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.event_log import SCHEMAS
from pipelines.event_rows import row_of
from pipelines.features import FeatureStore, default_feature_store_yaml
from schemas.events import FeedbackReceived, PredictionMade
from schemas.settings import Settings
from services.cli import cli
from services.dead_letters import dead_letter
from serving.access import pseudonym, read_keys, write_keys
from serving.broker import Message, Outgoing, Publisher, Topics, ensure_topics
from tests.events import feedback, outgoing, prediction
from tests.kafka_tools import read_all

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def append(store: FeatureStore, events: Sequence[PredictionMade | FeedbackReceived]) -> None:
    name = "predictions" if isinstance(events[0], PredictionMade) else "feedback"
    made = [row_of(event, START, name, 0, n) for n, event in enumerate(events)]
    store.log.append(name, pa.Table.from_pylist(made, schema=SCHEMAS[name]))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "ratchet.toml").write_text('[model]\nname = "shop"\n', encoding="utf-8")
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
        feedback(4, feedback_id="orphan", kind="comment", value="ünïcode\n", time=START + timedelta(hours=4)),
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
    assert [row["feedback_id"] for row in rows] == ["f0", "f1", "f2", "f3", "orphan"]
    assert rows[1] | {"metadata": None} == {
        "feedback_id": "f1",
        "prediction_id": "p1",
        "kind": "correction",
        "value": "a",
        "user": None,
        "text": "text 1",
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
        (["--user", "bob"], ["f0"]),
        (["--label", "b"], ["f0"]),
        (["--label", "a"], ["f1", "f2", "f3"]),
        (["--model-version", "v2"], ["f3"]),
        (["--since", "2026-03-01T14:00:00Z"], ["f2", "f3", "orphan"]),
        (["--until", "2026-03-01T13:00", "--model-version", "v1"], ["f0"]),
        (["--user", "nobody"], []),
    ],
)
def test_filters_choose(config: Path, options: list[str], expected: list[str]) -> None:
    assert [row["feedback_id"] for row in exported(config, *options)] == expected


@pytest.mark.parametrize("options", [["--out", "x.csv"], ["--out", "x.jsonl", "--since", "yesterday"], []])
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
    ensure_topics(broker, topics.names(), partitions=2, replication_factor=1, timeout_s=5)
    publisher = Publisher(broker, timeout_s=5)
    good = outgoing(topics, feedback(0))
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
