"""Events a second of one consumer, beside Feast's push of each batch and beside a bare poll loop.

The events are in the topics before the clock starts; joining the group is not timed, in none of the three.
"""

import json
import random
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from kafka import KafkaConsumer, TopicPartition

from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.configuration.kafka import KafkaSettings
from schemas.events import FeedbackData, FeedbackReceived, PredictionData, PredictionMade, new_id
from schemas.setting_groups import FeatureStoreSettings, ModelSettings
from schemas.settings import Settings
from services.feedback_consumer import Consumer
from serving.messaging.connection import Broker
from serving.messaging.publisher import Outgoing, Publisher, Topics, ensure_topics
from serving.privacy.anonymise import anonymise
from serving.registry.registry import Registry
from tests.bench.report import Figure
from tests.support.events import outgoing
from tests.support.fakes import wait_until
from tests.support.kafka_tools import own_broker

EVENTS = 200_000
CORRECTIONS = 100_000
BATCH = 2000
LABELS = [f"label {n}" for n in range(10)]
WORDS = (
    "where is my new card i ordered it two weeks ago and nothing has come so please help me with this payment".split()
)
PII = ("bob@example.org", "+44 20 7946 0958", "4111 1111 1111 1111", "10.0.0.1")


def project(folder: Path, bootstrap: str, name: str) -> tuple[Settings, Registry]:
    """A project with its registry, and its topics on the broker."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "feature_store.yaml").write_text(default_feature_store_yaml(name), encoding="utf-8")
    settings = Settings(
        root=folder,
        model=ModelSettings(name=name),
        kafka=KafkaSettings(bootstrap_servers=bootstrap),
        feature_store=FeatureStoreSettings(batch_rows=BATCH),
    )
    registry = Registry(settings.registry_url, name)
    registry.migrate()
    registry.set_labels(LABELS)
    ensure_topics(Broker(bootstrap), Topics.of(name).names(), partitions=2, replication_factor=1, timeout_s=10)
    return settings, registry


def prediction(draw: random.Random) -> PredictionMade:
    """About 20 tokens; one in twenty had something to anonymise."""
    text = " ".join(draw.choices(WORDS, k=19)) + (f" {draw.choice(PII)}" if draw.random() < 0.05 else "")
    best = draw.choice(LABELS)
    data = PredictionData(
        prediction_id=new_id(),
        model_name="m",
        model_version="v1",
        generation=1,
        text=anonymise(text),
        label=best,
        confidence=0.7,
        probabilities={label: 0.7 if label == best else 0.3 / 9 for label in LABELS},
        user=f"{draw.randrange(10_000):032x}",
        metadata={"channel": "ios"},
    )
    return PredictionMade(source="ratchet/m/serving", subject=data.prediction_id, data=data)


def feedback(draw: random.Random, about: PredictionMade, kind: str) -> FeedbackReceived:
    comment = anonymise(f"this is not what i asked for, write to {draw.choice(PII)}" if draw.random() < 0.05 else "no")
    data = FeedbackData(
        feedback_id=new_id(),
        prediction_id=about.data.prediction_id,
        model_name="m",
        kind=kind,
        value=draw.choice(LABELS) if kind == "correction" else comment,
        user=about.data.user,
    )
    return FeedbackReceived(source="ratchet/m/serving", subject=data.prediction_id, data=data)


def mixed(n: int, seed: int) -> Iterator[PredictionMade | FeedbackReceived]:
    """50 % predictions, 40 % corrections, 10 % comments, of which 2 % of all come a second time."""
    draw = random.Random(seed)
    recent: list[PredictionMade] = []
    sent: list[PredictionMade | FeedbackReceived] = []
    for _ in range(n):
        kind = draw.choices(["prediction", "correction", "comment"], [50, 40, 10])[0]
        if sent and draw.random() < 0.02:
            event: PredictionMade | FeedbackReceived = draw.choice(sent[-1000:])
        elif kind == "prediction" or not recent:
            event = prediction(draw)
            recent = [*recent[-999:], event]
        else:
            event = feedback(draw, draw.choice(recent), kind)
        sent = [*sent[-999:], event]
        yield event


def publish(bootstrap: str, messages: list[Outgoing]) -> None:
    publisher = Publisher(Broker(bootstrap), timeout_s=30)
    for start in range(0, len(messages), 1000):
        publisher.publish_many(messages[start : start + 1000])
    publisher.close()


def drained(settings: Settings, registry: Registry, n: int) -> float:
    """Messages a second at which a consumer stores what is left of `n` once the group has let it in."""
    consumer = Consumer(settings, registry, FeatureStore(settings))
    wait_until(lambda: consumer.step(0.01) is not None and consumer.ready, timeout_s=60, every_s=0)
    left = waiting = n - sum(at + 1 for at in registry.positions().values())
    begun = time.perf_counter()
    while left > 0:
        left -= consumer.step(0.5)
    seconds = time.perf_counter() - begun
    consumer.reset()
    return waiting / seconds


def polled(bootstrap: str, topics: list[str], n: int) -> Iterator[list[Any]]:
    """kafka-python's bare poll loop."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", max_poll_records=BATCH)
    consumer.assign([TopicPartition(topic, p) for topic in topics for p in range(2)])
    left = n
    while left > 0:
        records = [r for found in consumer.poll(timeout_ms=500).values() for r in found]
        left -= len(records)
        yield records
    consumer.close(autocommit=False)


def pushed(folder: Path, bootstrap: str, topics: Topics, n: int) -> float:
    """Seconds in which stock Feast stores `n` messages with one `FeatureStore.push` a batch and table; nothing is checked."""
    from feast import Entity, FeatureView, Field, FileSource, PushSource, RepoConfig, ValueType
    from feast import FeatureStore as Feast
    from feast.data_source import PushMode
    from feast.types import Float64, String

    columns = {
        "predictions": {
            "model_version": String,
            "text": String,
            "label": String,
            "confidence": Float64,
            "user": String,
        },
        "feedback": {"target": String, "kind": String, "value": String, "user": String},
    }
    folder.mkdir(parents=True)
    config = RepoConfig(
        project="push",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store, things = Feast(config=config), []
    for table, fields in columns.items():
        entity = Entity(name=f"{table}_id", join_keys=["id"], value_type=ValueType.STRING)
        empty = {"id": "", **{name: 0.0 if kind is Float64 else "" for name, kind in fields.items()}}
        path = folder / f"{table}.parquet"
        pd.DataFrame([empty | {"at": pd.Timestamp.now("UTC")}]).to_parquet(path, index=False)
        source = PushSource(name=table, batch_source=FileSource(path=str(path), timestamp_field="at"))
        schema = [Field(name="id", dtype=String), *[Field(name=k, dtype=v) for k, v in fields.items()]]
        view = FeatureView(name=f"{table}_view", entities=[entity], schema=schema, source=source, ttl=timedelta(0))
        things += [entity, source, view]
    store.apply(things)
    begun = time.perf_counter()
    for records in polled(bootstrap, [topics.predictions, topics.feedback], n):
        rows: dict[str, list[dict[str, Any]]] = {table: [] for table in columns}
        for record in records:
            event = json.loads(record.value)
            table = "predictions" if record.topic == topics.predictions else "feedback"
            data, at = event["data"], pd.Timestamp(event["time"])
            row = {name: data.get(name) for name in columns[table]} | {"at": at}
            if table == "feedback":
                row |= {"target": data["prediction_id"], "value": json.dumps(data["value"])}
            rows[table].append(row | {"id": data.get("feedback_id") or data["prediction_id"]})
        for table, found in rows.items():
            if found:
                store.push(table, pd.DataFrame(found), to=PushMode.ONLINE_AND_OFFLINE)
    return time.perf_counter() - begun


def throughput_figures(folder: Path) -> list[Figure]:
    """The four rates, in one run."""
    with own_broker() as broker:
        settings, registry = project(folder / "mixed", broker.address, "mixed")
        topics = Topics.of("mixed")
        publish(broker.address, [outgoing(topics, event) for event in mixed(EVENTS, seed=1)])
        ours = drained(settings, registry, EVENTS)
        print(f"  mixed: {ours:.0f} events/s", flush=True)
        begun = time.perf_counter()
        bare = sum(len(r) for r in polled(broker.address, [topics.predictions, topics.feedback], EVENTS))
        ceiling = bare / (time.perf_counter() - begun)
        print(f"  bare poll loop: {ceiling:.0f} events/s", flush=True)
        feast = EVENTS / pushed(folder / "push", broker.address, topics, EVENTS)
        print(f"  Feast's push of each batch: {feast:.0f} events/s", flush=True)
        registry.close()
    with own_broker() as broker:
        settings, registry = project(folder / "corrections", broker.address, "corrections")
        topics, draw = Topics.of("corrections"), random.Random(2)
        known = [prediction(draw) for _ in range(10_000)]
        publish(broker.address, [outgoing(topics, event) for event in known])
        drained(settings, registry, len(known))
        corrections = [feedback(draw, draw.choice(known), "correction") for _ in range(CORRECTIONS)]
        publish(broker.address, [outgoing(topics, event) for event in corrections])
        alone = drained(settings, registry, CORRECTIONS + len(known))
        print(f"  corrections only: {alone:.0f} events/s", flush=True)
        registry.close()
    return [
        Figure(
            figure="events/s end to end, beside Feast's push",
            value=ours,
            op=">=",
            target=3000,
            n=EVENTS,
            baseline=feast,
        ),
        Figure(
            figure="events/s, beside the bare poll loop", value=ours, op=">=", target=3000, n=EVENTS, baseline=ceiling
        ),
        Figure(figure="events/s, corrections only", value=alone, op=">=", target=5000, n=CORRECTIONS, baseline=ceiling),
    ]
