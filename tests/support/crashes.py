"""Consumers that are killed at a named point, and the proof that every event was stored once.

Used by test_crashes.py, once a point, and by the ingestion benchmark, twenty times a point. Consumers are forked from a
server that has imported everything, so that a kill costs the group's time-outs and little else.
"""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
from deltalake import DeltaTable

import pipelines.feature_store.online_store  # noqa: F401 - what forked consumers would each import
from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.configuration.kafka import KafkaSettings
from schemas.setting_groups import FeatureStoreSettings, ModelSettings
from schemas.settings import Settings
from services.feedback_consumer import main
from serving.messaging.connection import Broker
from serving.messaging.publisher import Outgoing, Publisher, Topics, ensure_topics
from serving.registry.registry import Registry
from tests.support.events import feedback, outgoing, prediction
from tests.support.fakes import wait_until
from tests.support.kafka_tools import read_all

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.crashes"])
EVENTS = 40


def consume(config: str, environment: dict[str, str]) -> None:
    """What a forked consumer runs: the real entry point."""
    os.environ.update(environment)
    os.set_blocking(1, True)
    with (Path(config).parent / "consumer.log").open("a", buffering=1, encoding="utf-8") as log:
        sys.stdout = sys.stderr = log
        main(["-c", config])


def start(settings: Settings, **environment: str) -> BaseProcess:
    process = FORKS.Process(target=consume, args=(str(settings.path("ratchet.toml")), environment), daemon=True)
    process.start()
    return process


def places(features: FeatureStore, name: str) -> list[tuple[str, int, int]]:
    """(topic_id, partition, offset) of every row in the log, as stored."""
    files = DeltaTable(features.log.uri(name)).file_uris()
    tables = [pq.read_table(file, columns=["topic_id", "partition", "offset"]) for file in files]
    return sorted((r["topic_id"], r["partition"], r["offset"]) for table in tables for r in table.to_pylist())


def project(root: Path, bootstrap: str, name: str) -> Settings:
    """Settings whose consumer commits a batch of a dozen messages and compacts at every other commit."""
    (root / "feature_store.yaml").write_text(default_feature_store_yaml(name), encoding="utf-8")
    lines = [f'[model]\nname = "{name}"', f'[kafka]\nbootstrap_servers = "{bootstrap}"']
    lines.append("[feature_store]\nbatch_rows = 12\nbatch_seconds = 0.2\ncompact_every = 2\n")
    (root / "ratchet.toml").write_text("\n".join(lines), encoding="utf-8")
    return Settings(
        root=root,
        model=ModelSettings(name=name),
        kafka=KafkaSettings(bootstrap_servers=bootstrap),
        feature_store=FeatureStoreSettings(batch_rows=12, batch_seconds=0.2, compact_every=2),
    )


def killed_at(point: str, root: Path, bootstrap: str, name: str) -> float:
    """Kill a consumer at `point`, start another, and check the log. Returns the seconds it took.

    Raises AssertionError: an event is missing, or is there twice.
    """
    started = time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    settings = project(root, bootstrap, name)
    topics = Topics.of(name)
    ensure_topics(Broker(bootstrap), topics.names(), partitions=2, replication_factor=1, timeout_s=30)
    registry = Registry(settings.registry_url, name)
    registry.migrate()
    registry.set_labels(["a", "b"])
    features = FeatureStore(settings)
    for table, schema in SCHEMAS.items():
        features.log.append(
            table, schema.empty_table(), {"earlier/0": 0}
        )  # so that the next commit is one to compact at
    publisher = Publisher(Broker(bootstrap), timeout_s=30)
    events = [event for n in range(EVENTS) for event in (prediction(n), feedback(n, model_name=name))]
    bad = [Outgoing(topics.feedback, str(n).encode(), b"bad %d" % n) for n in range(EVENTS)]
    messages = [outgoing(topics, event) for event in events] + bad
    publisher.publish_many(messages[: len(messages) // 2])
    killed = start(settings, RATCHET_CRASH_AT=point)
    killed.join(60)
    if killed.exitcode is None:
        killed.kill()
    said = (root / "consumer.log").read_text(encoding="utf-8") if (root / "consumer.log").exists() else "nothing"
    assert killed.exitcode == -signal.SIGKILL, f"{point}: {killed.exitcode}: {said}"
    publisher.publish_many(messages[len(messages) // 2 :])
    again = start(settings)
    try:
        wait_until(lambda: sum(at + 1 for at in registry.positions().values()) == len(messages))
    finally:
        assert again.pid is not None
        os.kill(again.pid, signal.SIGTERM)
        again.join(30)
        publisher.close()
        registry.close()
    assert again.exitcode == 0, point
    for table in ("predictions", "feedback"):
        stored = places(features, table)
        assert len(stored) == len(set(stored)) == EVENTS, f"{point}: {table}: {len(stored)} rows of {EVENTS}"
    assert features.stored_events() == {"predictions": EVENTS, "feedback": EVENTS}, point
    letters = {dict(r.headers)["ratchet-position"]: r.value for r in read_all(bootstrap, topics.dead_letters)}
    assert sorted(letters.values()) == sorted(m.value for m in bad), point
    return time.monotonic() - started
