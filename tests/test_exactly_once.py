"""Invariants 1 and 2 under kill -9: a consumer killed between its two commits loses nothing and stores nothing twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.features import FeatureStore, default_feature_store_yaml
from schemas.events import FeedbackData, FeedbackReceived, PredictionData, PredictionMade, new_id
from schemas.settings import Settings, render_settings
from serving.broker import Outgoing, Publisher, Topics, ensure_topics
from serving.registry import Registry
from tests.fakes import wait_until

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def config(settings: Settings, registry: Registry) -> Path:
    (settings.root / "feature_store.yaml").write_text(default_feature_store_yaml(settings.model.name))
    path = settings.root / "ratchet.toml"
    path.write_text(render_settings({"model": {"name": settings.model.name}}))
    return path


def consumer(config: Path, broker: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "services.feedback_consumer", "-c", str(config)]
    variables = {**os.environ, "RATCHET_KAFKA__BOOTSTRAP_SERVERS": broker, **environment}
    with (config.parent / "consumer.log").open("ab") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=log, stderr=subprocess.STDOUT)


def events(model: str, n: int) -> list[PredictionMade | FeedbackReceived]:
    found: list[PredictionMade | FeedbackReceived] = []
    for i in range(n):
        made = PredictionData(
            prediction_id=new_id(),
            model_name=model,
            model_version="v",
            generation=1,
            text=f"text {i}",
            label="a",
            confidence=0.5,
        )
        said = FeedbackData(
            feedback_id=f"f{i}",
            prediction_id=made.prediction_id,
            model_name=model,
            kind="correction",
            value="b",
            user="u",
        )
        found.append(PredictionMade(source="test", subject=made.prediction_id, data=made))
        found.append(FeedbackReceived(source="test", subject=made.prediction_id, data=said))
    return found


def test_a_killed_consumer_stores_every_event_once(
    config: Path, settings: Settings, registry: Registry, broker: str
) -> None:
    topics = Topics.of(settings.model.name)
    ensure_topics(broker, topics.names(), partitions=2, replication_factor=1, timeout_s=5)
    messages = [
        Outgoing(
            topics.predictions if isinstance(event, PredictionMade) else topics.feedback,
            event.subject.encode(),
            event.model_dump_json().encode(),
        )
        for event in events(settings.model.name, 30)
    ]
    publisher = Publisher(broker, timeout_s=5)
    publisher.publish_many([*messages, Outgoing(topics.feedback, b"junk", b"no event"), *messages[:4]])
    publisher.close()

    killed = consumer(config, broker, RATCHET_CRASH_AT="between_commits")
    assert killed.wait(60) == -signal.SIGKILL, (config.parent / "consumer.log").read_text()
    again = consumer(config, broker)
    try:
        features = FeatureStore(settings)
        wait_until(lambda: features.stored_events() == {"predictions": 30, "feedback": 30}, timeout_s=60, every_s=0.5)
        wait_until(lambda: len(registry.positions()) > 0, timeout_s=10)
    finally:
        again.send_signal(signal.SIGTERM)
        assert again.wait(30) == 0
    assert len(features.labelled_feedback(features.current_cut())) == 30
    assert "dlq" in (config.parent / "consumer.log").read_text()
