"""A request of many long texts: others get their turns while it is anonymised, and what is past a quota is not worked on."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from schemas.setting_groups import AccessSettings
from schemas.settings import Settings
from serving.api import Api
from serving.artifacts import ArtifactStore
from serving.http.access import Keys, write_keys
from serving.http.asgi import Message
from serving.http.metrics import Metrics
from serving.inference.batching import MicroBatcher
from serving.inference.generation_queue import GenerationQueue
from serving.live import LiveModel
from serving.messaging.connection import Broker
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import Topics
from serving.privacy.anonymise import anonymise
from serving.registry.registry import Registry
from tests.support.fakes import TOPICS, free_port
from tests.support.guards import lone_guard
from tests.support.versions import promote

TEXTS = [f"{n} " + "call 4111 1111 1111 1112 by 2026-01-02, " * 100 for n in range(100)]  # full of digits


class Worker:
    """The parts of a worker, for APIs with different settings of access."""

    def __init__(self, root: Path, version: Path) -> None:
        self.settings = Settings.model_validate({"model": {"name": "m"}}).model_copy(update={"root": root})
        self.keys: Keys = write_keys(root / "keys.env")
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

    def api(self, access: AccessSettings) -> Api:
        settings = self.settings.model_copy(update={"access": access})
        guard, metrics = lone_guard(settings, self.keys), Metrics("m", CollectorRegistry())
        return Api(settings, self.keys, self.live, self.batcher, self.generation, self.outbox, metrics, guard)

    def close(self) -> None:
        for part in (self.live, self.batcher, self.generation, self.registry):
            part.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[Worker]:
    made = Worker(tmp_path_factory.mktemp("worker"), version)
    yield made
    made.close()


@pytest.fixture(scope="module")
def anonymising() -> float:
    """Seconds of a thread that it takes to anonymise TEXTS."""
    began = time.thread_time()
    for text in TEXTS:
        anonymise(text)
    return time.thread_time() - began


@dataclass(frozen=True)
class Cost:
    """What a request took of the event loop's thread, in seconds: together, and at most between two turns of others."""

    status: int
    together: float
    longest: float


async def cost(worker: Worker, access: AccessSettings) -> Cost:
    """Ask for predictions of TEXTS, beside a coroutine that takes every turn it gets."""
    bodies = [json.dumps({"items": [{"text": text} for text in TEXTS]}).encode()]
    sent: list[Message] = []

    async def receive() -> Message:
        if not bodies:
            await asyncio.Event().wait()  # the caller stays
        return {"type": "http.request", "body": bodies.pop()}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {worker.keys.api_key}".encode())]
    scope = {"type": "http", "path": "/predict", "method": "POST", "headers": headers}
    request = asyncio.create_task(worker.api(access)(scope, receive, send))
    began = before = time.thread_time()
    longest = 0.0
    while not request.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    await request
    return Cost(sent[0]["status"], before - began, longest)


def test_others_get_their_turns_while_a_large_batch_is_anonymised(worker: Worker, anonymising: float) -> None:
    found = asyncio.run(cost(worker, AccessSettings()))
    assert found.status == 200
    assert found.longest < anonymising / 4


def test_texts_past_the_quota_are_refused_before_they_are_anonymised(worker: Worker, anonymising: float) -> None:
    found = asyncio.run(cost(worker, AccessSettings(quota=f"{len(TEXTS) - 1}/day")))
    assert found.status == 429
    assert found.together < anonymising / 4
