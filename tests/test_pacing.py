"""Pacing: a worker's cheap answers are limited in rate, its predictions are not."""

import asyncio
import time

import orjson
import pytest

from serving.http.asgi import Message, Request
from serving.http.cors import Cors
from serving.http.pacing import Pacing, refusal_cost
from serving.http.routes import Router


def test_a_burst_passes_and_the_rest_waits_its_turn() -> None:
    pacing = Pacing(per_second=100, burst=5, clock=lambda: 7.0)
    delays = [pacing.delay() for _ in range(8)]
    assert delays[:5] == [0.0] * 5
    assert delays[5:] == pytest.approx([0.01, 0.02, 0.03])


def test_a_pause_refills_the_burst_and_no_more() -> None:
    now = [0.0]
    pacing = Pacing(per_second=100, burst=5, clock=lambda: now[0])
    for _ in range(20):
        pacing.delay()
    now[0] = 1000.0
    assert [pacing.delay() for _ in range(6)].count(0.0) == 5


def test_no_answer_waits_longer_than_the_limit() -> None:
    pacing = Pacing(per_second=10, burst=1, longest_s=2.0, clock=lambda: 0.0)
    assert max(pacing.delay() for _ in range(1000)) == 2.0


@pytest.mark.parametrize(
    ("headers", "cost"),
    [
        ({}, 1.0),
        ({b"content-length": b"0"}, 1.0),
        ({b"content-length": b"512000"}, 3.0),
        ({b"content-length": b"9" * 5000}, 5.0),  # no more than is read is counted
        ({b"content-length": b"-1"}, 5.0),
        ({b"transfer-encoding": b"chunked"}, 5.0),
    ],
)
def test_a_refusal_costs_what_its_body_takes_to_discard(headers: dict[bytes, bytes], cost: float) -> None:
    assert refusal_cost(headers, 1_024_000) == cost


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def echo(request: Request) -> tuple[int, bytes]:
    return 200, orjson.dumps(len(await request.body(1000)))


async def about(_request: Request) -> tuple[int, bytes]:
    return 200, b"{}"


async def ask(app: Router, method: str, path: str, body: bytes = b"") -> list[Message]:
    """Return what the router sends."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
    return sent


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/nowhere", "/about"])
async def test_a_flood_of_refusals_or_public_pages_is_slowed_while_predictions_pass(path: str) -> None:
    routes = {"/echo": ("POST", echo), "/about": ("GET", about)}
    app = Router(routes, headers=[], cors=Cors([]), max_body_bytes=1000)
    started = time.monotonic()
    floods = [asyncio.create_task(ask(app, "GET", path)) for _ in range(1000)]
    while not any(one.done() for one in floods):
        await asyncio.sleep(0)
    assert (await ask(app, "POST", "/echo", b"abc"))[-1]["body"] == b"3"
    answered = sum(one.done() for one in floods)
    assert 100 <= answered <= 100 + 200 * (time.monotonic() - started), "a burst of 100, then 200 in a second"
    assert answered < len(floods), "a prediction is answered before the refusals that came earlier"
    for one in floods:
        one.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
