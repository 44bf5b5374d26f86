"""The parts of a serving worker, for tests that put APIs with settings of their own in front of them."""

from pathlib import Path

from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.http.access import write_keys
from serving.inference.batching import MicroBatcher
from serving.inference.generation_queue import GenerationQueue
from serving.live import LiveModel
from serving.messaging.connection import Broker
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import Topics
from serving.registry.registry import Registry
from tests.support.fakes import TOPICS, free_port
from tests.support.versions import promote


class WorkerParts:
    """A worker's model, queues and outbox in a folder of its own; `own` are its keys. The outbox is not started."""

    def __init__(self, root: Path, version: Path) -> None:
        self.settings = Settings.model_validate({"model": {"name": "m"}}).model_copy(update={"root": root})
        self.own = write_keys(root / "keys.env")
        self.registry = Registry(self.settings.registry_url, "m")
        self.registry.migrate()
        self.registry.set_labels(TOPICS)
        store = ArtifactStore(self.settings.location(self.settings.artifacts.url))
        promote(self.registry, store, version)
        cache = self.settings.path("state/cache")
        self.live = LiveModel(self.registry, store, cache, threads=1, poll_seconds=60)
        self.live.start()
        self.batcher = MicroBatcher(self.live.current, max_batch=8, max_queue=100)
        self.generation = GenerationQueue(self.live.current, max_queue=1)
        self.outbox = Outbox(
            root / "outbox", broker=Broker(f"127.0.0.1:{free_port()}"), topics=Topics.of("m"), keep=Keep.UNTIL_STORED,
            stored_positions=self.registry.positions, max_bytes=10_000_000, timeout_s=1,
        )  # fmt: skip

    def close(self) -> None:
        """End the parts that run."""
        for part in (self.live, self.batcher, self.generation, self.registry):
            part.close()
