"""A project of which only ingestion runs: registry, event log and consumer on a broker of the test's choice."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.configuration.kafka import KafkaSettings
from schemas.setting_groups import FeatureStoreSettings, ModelSettings
from schemas.settings import Settings
from services.feedback_consumer import Consumer, Stalled, run
from serving.http.access import write_keys
from serving.messaging.connection import Broker, BrokerUnavailable
from serving.messaging.publisher import Outgoing, Publisher, Topics, ensure_topics
from serving.registry.registry import Registry
from tests.support.events import feedback
from tests.support.fakes import wait_until
from tests.support.kafka_tools import read_all


def stepped(consumer: Consumer, seconds: float = 0.2) -> int | None:
    """Return the number of messages that a step stored; None where it failed and the consumer begins anew, as the process does.

    A busy machine keeps a group or a confirmation waiting for longer than the product waits.
    """
    try:
        return consumer.step(seconds)
    except (Stalled, BrokerUnavailable):
        consumer.reset()
        return None


class Ingesting:
    """One project; `numbers` are those of the feedback that it was sent, and that it holds."""

    def __init__(self, root: Path, address: str, model_name: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        (root / "feature_store.yaml").write_text(default_feature_store_yaml(model_name), encoding="utf-8")
        self.settings = Settings(
            root=root,
            model=ModelSettings(name=model_name),
            kafka=KafkaSettings(bootstrap_servers=address, partitions=1),
            feature_store=FeatureStoreSettings(batch_seconds=0.2),
        )
        self.address, self.broker, self.topics = address, Broker.of(self.settings), Topics.of(model_name)
        self.registry = Registry(self.settings.registry_url, model_name)
        self.registry.migrate()
        self.registry.set_labels(["a", "b"])
        write_keys(self.settings.path(self.settings.access.keys))
        self.features = FeatureStore(self.settings)

    def make_topics(self) -> None:
        wait_until(self._made)

    def _made(self) -> bool:
        try:
            ensure_topics(self.broker, self.topics.names(), partitions=1, replication_factor=1, timeout_s=30)
        except ConnectionError:
            return False
        return True

    def event(self, n: int) -> bytes:
        return feedback(n, model_name=self.settings.model.name).model_dump_json().encode()

    def send(self, *numbers: int) -> None:
        publisher = Publisher(self.broker, timeout_s=20)
        try:
            publisher.publish_many([Outgoing(self.topics.feedback, b"k", self.event(n)) for n in numbers])
        finally:
            publisher.close()

    def stored(self) -> list[str]:
        """The ids of the stored feedback."""
        rows = self.features.log.rows("feedback").to_table(columns=["feedback_id"])
        return [str(name) for name in rows["feedback_id"].to_pylist()]

    def stores(self, *numbers: int) -> bool:
        wanted = [feedback(n, model_name=self.settings.model.name).data.feedback_id for n in numbers]
        return sorted(self.stored()) == sorted(wanted)

    def consume(self, *numbers: int, timeout_s: float = 60) -> None:
        """Run a consumer until the log holds exactly these, then until nothing is left."""
        with self.consuming() as consumer:
            wait_until(lambda: self.stores(*numbers) and consumer.drained(), timeout_s=timeout_s, every_s=0.3)

    @contextlib.contextmanager
    def consuming(self) -> Iterator[Consumer]:
        """Run a consumer within the block."""
        consumer, stop = Consumer(self.settings, self.registry, FeatureStore(self.settings)), threading.Event()
        thread = threading.Thread(target=run, args=(consumer, stop, 0.2))
        thread.start()
        try:
            yield consumer
        finally:
            stop.set()
            thread.join(30)
            consumer.reset()

    def letters(self) -> list[tuple[bytes, dict[str, Any]]]:
        return [(r.value, dict(r.headers)) for r in read_all(self.address, self.topics.dead_letters)]

    def notes(self) -> dict[str, tuple[int, int | None, str]]:
        """Kind -> count, last offset, detail."""
        return {note.kind: (note.count, note.last_offset, note.detail) for note in self.registry.ingestion()}

    def close(self) -> None:
        self.registry.close()
