"""What history costs: the seconds of a micro-batch, and of reading a training set, over a log of a million rows."""

import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean, median

import numpy as np
import pyarrow as pa

from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.events import PredictionMade, new_id
from schemas.settings import Settings
from services.feedback_consumer import Consumer
from serving.messaging.publisher import Message, Topics
from tests.bench.ingest_throughput import WORDS, mixed, prediction, project
from tests.bench.report import Figure
from tests.support.events import outgoing
from tests.support.fakes import wait_until
from tests.support.kafka_tools import own_broker

FEW, MANY = 10_000, 1_000_000
BATCHES, ROWS = 200, 500
EXAMPLES = 50_000
START = datetime(2026, 1, 1, tzinfo=UTC)


def fill(features: FeatureStore, predictions: int, feedback: int, *, online: bool) -> None:
    """So many rows in the log, as a consumer would have left them, and online."""
    draw = random.Random(3)
    known: list[str] = []
    for start in range(0, predictions, 20_000):
        n = min(20_000, predictions - start)
        ids = [new_id() for _ in range(n)]
        known += ids
        when = [START + timedelta(seconds=start + i) for i in range(n)]
        rows = {
            "prediction_id": ids,
            "model_version": ["v1"] * n,
            "generation": [1] * n,
            "text": [" ".join(draw.choices(WORDS, k=20)) for _ in range(n)],
            "predicted_label": ["a"] * n,
            "confidence": [0.7] * n,
            "probabilities": ['{"a":0.7,"b":0.3}'] * n,
            "user": [f"{draw.randrange(10_000):032x}" for _ in range(n)],
            "metadata": ['{"channel":"ios"}'] * n,
            "audit": [False] * n,
            "event_timestamp": when,
            "created_timestamp": when,
            "topic_id": ["earlier"] * n,
            "partition": [0] * n,
            "offset": list(range(start, start + n)),
        }
        features.log.append("predictions", pa.table(rows, schema=SCHEMAS["predictions"]))
        if online:
            sample = prediction(draw)
            features.write_online([_copy(sample, i, at) for i, at in zip(ids, when, strict=True)])
    for start in range(0, feedback, 20_000):
        n = min(20_000, feedback - start)
        when = [START + timedelta(days=30, seconds=start + i) for i in range(n)]
        rows = {
            "feedback_id": [new_id() for _ in range(n)],
            "prediction_id": [known[(start + i) * len(known) // feedback] for i in range(n)],
            "kind": ["correction"] * n,
            "value": ['"b"'] * n,
            "user": [f"{draw.randrange(10_000):032x}" for _ in range(n)],
            "event_timestamp": when,
            "created_timestamp": when,
            "topic_id": ["earlier"] * n,
            "partition": [0] * n,
            "offset": list(range(start, start + n)),
        }
        features.log.append("feedback", pa.table(rows, schema=SCHEMAS["feedback"]))
    for table in SCHEMAS:
        features.log.compact(table)


def _copy(sample: PredictionMade, identity: str, at: datetime) -> PredictionMade:
    data = sample.data.model_copy(update={"prediction_id": identity})
    return sample.model_copy(update={"subject": identity, "time": at, "data": data})


def growth_figures(folder: Path) -> list[Figure]:
    """Batches of ROWS events, in turn into a log of FEW rows and into one of MANY."""
    with own_broker() as broker:
        consumers: list[tuple[Consumer, Topics]] = []
        for name, rows in (("few", FEW), ("many", MANY)):
            settings, registry = project(folder / name, broker.address, name)
            features = FeatureStore(settings)
            fill(features, rows // 2, rows // 2, online=True)
            consumer = Consumer(settings, registry, features)
            wait_until(lambda c=consumer: c.step(0.01) is not None and c.ready, timeout_s=120, every_s=0)  # type: ignore[misc]
            consumer.step(0.01)  # counts made anew
            consumers.append((consumer, Topics.of(name)))
            print(f"  filled with {rows} rows", flush=True)
        events = list(mixed(BATCHES * ROWS, seed=4))
        seconds: tuple[list[float], list[float]] = ([], [])
        offsets = [{"predictions": 0, "feedback": 0}, {"predictions": 0, "feedback": 0}]
        for start in range(0, len(events), ROWS):
            order = (0, 1) if start // ROWS % 2 else (1, 0)
            for which in order:
                consumer, topics = consumers[which]
                messages = []
                for event in events[start : start + ROWS]:
                    out, table = (
                        outgoing(topics, event),
                        "predictions" if isinstance(event, PredictionMade) else "feedback",
                    )
                    messages.append(Message(out.topic, 0, offsets[which][table], out.key, out.value, ()))
                    offsets[which][table] += 1
                begun = time.perf_counter()
                consumer.store(messages)
                seconds[which].append(time.perf_counter() - begun)
        for consumer, _ in consumers:
            consumer.reset()
    few, many = np.array(seconds[0]), np.array(seconds[1])
    print(
        f"  mean batch: {mean(few) * 1000:.1f} ms with {FEW}, {mean(many) * 1000:.1f} ms with {MANY} rows stored",
        flush=True,
    )
    print(
        f"  median {median(few) * 1000:.1f} and {median(many) * 1000:.1f} ms, longest {max(few):.2f} and {max(many):.2f} s"
    )
    draw = np.random.default_rng(5)
    picks = draw.integers(0, BATCHES, (2000, BATCHES))
    ratios = many[picks].mean(axis=1) / few[picks].mean(axis=1)
    low, high = (float(q) for q in np.quantile(ratios, [0.025, 0.975]))
    figure = f"mean batch seconds, {MANY:,} over {FEW:,} rows stored"
    return [
        Figure(figure=figure, value=mean(many) / mean(few), op="<=", target=1.2, n=BATCHES, interval=(low, high)),
    ]


def read_figures(folder: Path) -> list[Figure]:
    """labelled_feedback: point-in-time join, the rules of what counts, and Python rows at the end."""
    (folder / "feature_store.yaml").write_text(default_feature_store_yaml("read"), encoding="utf-8")
    features = FeatureStore(Settings(root=folder))
    fill(features, MANY - EXAMPLES, EXAMPLES, online=False)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        assert len(features.labelled_feedback(features.current_cut())) == EXAMPLES
        seconds.append(time.perf_counter() - begun)
    print(f"  read: {', '.join(f'{s:.2f}' for s in seconds)} s", flush=True)
    figure = f"seconds to read {EXAMPLES:,} examples out of {MANY:,} rows"
    return [
        Figure(figure=figure, value=median(seconds), op="<=", target=3.0, n=5, interval=(min(seconds), max(seconds)))
    ]
