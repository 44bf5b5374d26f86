"""Three callers without pause while a cluster of three nodes loses its leader, restarts, loses its quorum and freezes.

Real serving, six real consumers that come and go, Apache Kafka from ../shared/kafka. Every answer is compared with the event
log at the end.
"""

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
from kafka import KafkaAdminClient

from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.settings import Settings, load_settings
from serving.messaging.connection import Broker
from serving.messaging.outbox_store import waiting
from serving.messaging.publisher import Topics, ensure_topics
from tests.bench.report import Figure
from tests.support.apache_kafka import Cluster, cluster
from tests.support.crashes import start
from tests.support.fakes import TOPICS, wait_until
from tests.support.served import Served, make_project, served

CALLERS, MEMBERS = 3, 6
STEADY, QUORUM_LOST, FROZEN, RECOVERY = 15.0, 20.0, 15.0, 15.0
COME_AND_GO = 12.0  # a rebalance takes up to the session timeout of 6 s
LABELS = list(TOPICS)


@dataclass
class Answers:
    """What the callers were told, by phase."""

    phase: str = "steady"
    predictions: set[str] = field(default_factory=set)
    feedback: set[str] = field(default_factory=set)
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)


def fault_figures(folder: Path) -> list[Figure]:
    """The faults in a row, under load."""
    config = make_project(folder / "project", workers=2)
    (config.parent / "feature_store.yaml").write_text(default_feature_store_yaml("m"), encoding="utf-8")
    answers, done = Answers(), threading.Event()
    with cluster(folder / "kafka", 3) as kafka:
        environment = {"RATCHET_KAFKA__BOOTSTRAP_SERVERS": kafka.servers}
        settings = load_settings(config.read_text(encoding="utf-8"), environment, root=config.parent)
        topics = Topics.of("m")
        ensure_topics(Broker(kafka.servers), topics.names(), partitions=2, replication_factor=3, timeout_s=30)
        with served(config, kafka.servers, embedded=False) as server, members(settings, environment, done):
            callers = [threading.Thread(target=call, args=(server, answers, done, n)) for n in range(CALLERS)]
            for caller in callers:
                caller.start()
            for name, fault in faults(kafka, topics).items():
                answers.phase = name
                fault()
                print(
                    f"  {name}: {answers.asked[name]} requests, worst wait {answers.worst.get(name, 0):.2f} s",
                    flush=True,
                )
            done.set()
            for caller in callers:
                caller.join()
            outbox = settings.path(settings.serving.outbox)
            wait_until(lambda: waiting(outbox) == 0, timeout_s=120, every_s=0.5)
            features = FeatureStore(settings)
            expected = {"predictions": len(answers.predictions), "feedback": len(answers.feedback)}
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: features.stored_events() == expected, timeout_s=300, every_s=5)
    return compared(answers, features)


def compared(answers: Answers, features: FeatureStore) -> list[Figure]:
    """The answers beside the rows of the event log."""
    rows = {
        "predictions": Counter(features.log_rows("predictions")["prediction_id"].to_pylist()),
        "feedback": Counter(features.log_rows("feedback")["feedback_id"].to_pylist()),
    }
    lost = len(answers.predictions - rows["predictions"].keys()) + len(answers.feedback - rows["feedback"].keys())
    doubled = sum(n - 1 for table in rows.values() for n in table.values())
    total, n = len(answers.predictions) + len(answers.feedback), answers.asked.total()
    slowest = max(answers.worst, key=lambda phase: answers.worst[phase])
    return [
        Figure(figure="faults: answered events that are not in the log", value=lost, op="<=", target=0, n=total),
        Figure(figure="faults: rows of the log beyond one for each event", value=doubled, op="<=", target=0, n=total),
        Figure(figure="faults: predictions failed", value=answers.failed.total(), op="<=", target=0, n=n // 2),
        Figure(figure="faults: feedback refused", value=answers.refused.total(), op="<=", target=0, n=n // 2),
        Figure(
            figure=f"faults: worst wait of a caller in s ({slowest}); baseline: steady",
            value=answers.worst[slowest],
            op="<=",
            target=1.0,
            n=n,
            baseline=answers.worst["steady"],
        ),
    ]


def faults(kafka: Cluster, topics: Topics) -> dict[str, Callable[[], None]]:
    """The phases in their order; each ends with the cluster whole again."""

    def leader_killed() -> None:
        node = leader(kafka, topics.feedback)
        kafka.kill(node)
        time.sleep(RECOVERY)
        kafka.start(node)

    def rolling_restart() -> None:
        for node in kafka.nodes:
            kafka.stop(node)
            kafka.start(node)

    def quorum_lost() -> None:
        kafka.kill(1, 2)
        time.sleep(QUORUM_LOST)
        kafka.start(1, 2)

    def frozen() -> None:
        kafka.signal(signal.SIGSTOP)
        time.sleep(FROZEN)
        kafka.signal(signal.SIGCONT)

    return {
        "steady": lambda: time.sleep(STEADY),
        "leader killed": leader_killed,
        "rolling restart": rolling_restart,
        "quorum lost": quorum_lost,
        "frozen": frozen,
        "recovered": lambda: time.sleep(RECOVERY),
    }


def leader(kafka: Cluster, topic: str) -> int:
    """The node that leads the first partition of a topic."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.servers)
    try:
        [described] = admin.describe_topics([topic])
        return int(described["partitions"][0]["leader_id"])
    finally:
        admin.close()


def call(server: Served, answers: Answers, done: threading.Event, number: int) -> None:
    """Ask for predictions and send feedback on each, without pause."""
    draw = random.Random(number)
    with httpx.Client(base_url=server.url, headers={"Authorization": server.header}, timeout=30) as client:
        while not done.is_set():
            body: dict[str, object] = {
                "items": [{"text": " ".join(draw.choices(TOPICS[draw.choice(LABELS)], k=8))}],
                "user": f"u{number}",
            }
            predicted = timed(client, "/predict", body, answers)
            if predicted is None or predicted.status_code != 200:
                answers.failed[answers.phase] += 1
                continue
            prediction_id = predicted.json()[0]["prediction_id"]
            answers.predictions.add(prediction_id)
            about = {"prediction_id": prediction_id, "kind": "correction", "value": draw.choice(LABELS)}
            given = timed(client, "/feedback", {**about, "user": f"u{number}"}, answers)
            if given is None or given.status_code != 202:
                answers.refused[answers.phase] += 1
                continue
            answers.feedback.add(given.json()["feedback_id"])


def timed(client: httpx.Client, path: str, body: dict[str, object], answers: Answers) -> httpx.Response | None:
    """The answer to one request, and its time in the phase in which it was sent; None if there was no answer."""
    phase, begun = answers.phase, time.perf_counter()
    answers.asked[phase] += 1
    try:
        return client.post(path, json=body)
    except httpx.HTTPError as error:
        print(f"  {path}: {type(error).__name__}: {error}", flush=True)
        return None
    finally:
        answers.worst[phase] = max(answers.worst.get(phase, 0.0), time.perf_counter() - begun)


@contextlib.contextmanager
def members(settings: Settings, environment: dict[str, str], done: threading.Event) -> Iterator[None]:
    """Six consumers of one group; until `done` one of them is killed or told to stop every COME_AND_GO s, and another comes."""
    running = [start(settings, **environment) for _ in range(MEMBERS)]

    def come_and_go() -> None:
        draw = random.Random(1)
        while not done.wait(COME_AND_GO):
            leaving = running.pop(draw.randrange(len(running)))
            if draw.random() < 0.5:
                leaving.kill()
            else:
                leaving.terminate()
            running.append(start(settings, **environment))
            gone.append(leaving)

    gone: list[BaseProcess] = []
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for process in [*running, *gone]:
            process.kill()
            process.join(10)
