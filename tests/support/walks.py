"""A project's parts in one process, but for the broker, as the processes of `ratchet up` would hold them.

The walks of several labels, of numbers and of texts use them.
"""

import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from pipelines.feature_store.store import FeatureStore
from pipelines.training_round import run_round
from schemas.records import RoundRecord
from schemas.settings import Settings
from services.feedback_consumer import Consumer, run
from serving.api import Api
from serving.artifacts import ArtifactStore
from serving.http.access import read_keys
from serving.http.metrics import Metrics
from serving.inference.batching import MicroBatcher
from serving.inference.generation_queue import GenerationQueue
from serving.live import LiveModel
from serving.messaging.connection import Broker
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import Topics, ensure_topics
from serving.registry.registry import Registry
from tests.support.guards import lone_guard


class Walk:
    """A project's parts, as the processes would hold them."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.topics = settings, Topics.of(settings.model.name)
        self.registry = Registry(settings.registry_url, settings.model.name)
        self.store = ArtifactStore(settings.location(settings.artifacts.url))
        broker = Broker.of(settings)
        ensure_topics(broker, self.topics.names(), partitions=1, replication_factor=1, timeout_s=30)
        self.outbox = Outbox(
            settings.path("state/outbox"), broker=broker, topics=self.topics, keep=Keep.UNTIL_CONFIRMED,
            stored_positions=self.registry.positions, max_bytes=10_000_000, timeout_s=5,
        )  # fmt: skip
        self.live = LiveModel(self.registry, self.store, settings.path("state/cache"), threads=1, poll_seconds=60)
        self.batcher = MicroBatcher(self.live.current, max_batch=8, max_queue=500)
        self.writing = GenerationQueue(self.live.current, max_queue=500)
        keys, metrics = read_keys(settings.path("keys.env")), Metrics("walk", CollectorRegistry())
        guard = lone_guard(settings, keys)
        self.api = Api(settings, keys, self.live, self.batcher, self.writing, self.outbox, metrics, guard)

    def round(self, features: FeatureStore | None, progress: Callable[..., None] = lambda *_: None) -> RoundRecord:
        cut = features.current_cut() if features else {}
        claimed = self.registry.unfinished_round() or self.registry.claim_round(reason="test", cut=cut, token=None)
        assert claimed is not None
        done = run_round(
            claimed.round_id, settings=self.settings, registry=self.registry, store=self.store, features=features,
            token=None, progress=progress,
        )  # fmt: skip
        self.live.follow()
        return done

    def stored(self) -> FeatureStore:
        """All that was said so far, stored by a consumer that then ends."""
        self.api.flush()
        self.outbox.close(10)
        features, stop = FeatureStore(self.settings), threading.Event()
        consumer = Consumer(self.settings, self.registry, features)
        stop.set()
        run(consumer, stop, 0.2, drain_s=90)  # the group may be slow to let a member in
        consumer.reset()
        return features

    def close(self) -> None:
        self.live.close()
        self.batcher.close()
        self.writing.close()
        self.registry.close()


def only_advise(settings: Settings, *gates: str) -> None:
    """Gates that block nothing in this project."""
    policy = settings.path("policy.toml")
    text = policy.read_text(encoding="utf-8")
    for gate in gates:
        text = text.replace(f"[{gate}]\nblocking = true", f"[{gate}]\nblocking = false")
    policy.write_text(text, encoding="utf-8")
