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
from serving.api import Api
from serving.http.asgi import Message
from serving.http.metrics import Metrics
from serving.privacy.anonymise import anonymise
from tests.support.guards import lone_guard
from tests.support.workers import WorkerParts

TEXTS = [f"{n} " + "call 4111 1111 1111 1112 by 2026-01-02, " * 100 for n in range(100)]  # full of digits


class Worker(WorkerParts):
    """A worker, for APIs with different settings of access."""

    def api(self, access: AccessSettings) -> Api:
        settings = self.settings.model_copy(update={"access": access})
        guard, metrics = lone_guard(settings, self.own), Metrics("m", CollectorRegistry())
        return Api(settings, self.own, self.live, self.batcher, self.generation, self.outbox, metrics, guard)


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

    headers = [(b"authorization", f"Bearer {worker.own.api_key}".encode())]
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
