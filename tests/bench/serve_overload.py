"""PART=overload of `make bench-serve`: three times as many requests as two workers can answer, for a minute.

Turns requests of 32 texts that come at a fixed rate, whatever is answered, into counts of statuses, the latency of those
answered, goodput over capacity, and the seconds until a request of one text is as fast as before. Each request has a
connection of its own and waits for its answer: nobody hangs up. The load runs in a niced process beside the servers.
"""

import asyncio
import json
import multiprocessing
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase

from tests.bench.report import Figure
from tests.bench.serve_project import project, ratchet

TEXTS, TIMES, SECONDS = 32, 3, float(os.environ.get("OVERLOAD_SECONDS", "60"))
CALLERS = 16  # who measure the capacity: enough to keep both workers busy
WARM_S, CAPACITY_S = 5.0, 15.0
WAIT_S, RECOVERY_S, PROBES = 60.0, 30.0, 100
BACK = 2.0  # a request is as fast as before within this factor of the median at rest
ANSWERS = ("200", "429", "503")


@dataclass
class Outcomes:
    """What became of each request: its status or the error's name, and the seconds of those answered 200."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    in_time: int = 0  # answered 200 before the load ended
    without_retry_after: int = 0
    capacity: float = 0.0  # texts a second
    recovery_s: float = float("inf")


def measure() -> list[Figure]:
    """Measure capacity, then load three times as much, then wait for the latency of before."""
    bank = project()
    with ratchet(bank, bank.auto) as (url, process, _):
        context = multiprocessing.get_context("spawn")
        outcomes: multiprocessing.Queue[Outcomes] = context.Queue()
        load = context.Process(target=_load, args=(int(url.rsplit(":", 1)[1]), bank.header, bank.texts, outcomes))
        load.start()
        found = outcomes.get(timeout=WARM_S + CAPACITY_S + SECONDS + WAIT_S + RECOVERY_S + 60)
        load.join(10)
        alive = process.is_running()
    return _figures(found, bank.settings.serving.timeout_s, alive)


def _figures(found: Outcomes, deadline_s: float, alive: bool) -> list[Figure]:
    sent, answered = found.statuses.total(), sorted(found.seconds)
    unanswered = sent - sum(found.statuses[status] for status in ANSWERS)
    goodput, capacity = TEXTS * found.in_time / SECONDS, found.capacity
    p99 = answered[int(0.99 * (len(answered) - 1))] if answered else float("inf")
    p50 = answered[len(answered) // 2] if answered else float("inf")
    counts = dict(sorted(found.statuses.items()))
    print(f"capacity {capacity:.0f} texts/s; {sent} requests in {SECONDS:.0f} s: {counts}")
    print(f"of those answered p50 {p50:.2f} s, p99 {p99:.2f}; recovered after {found.recovery_s:.1f} s", flush=True)

    def figure(name: str, value: float, op: str, target: float, n: int, baseline: float | None = None) -> Figure:
        return Figure(
            figure=f"overload: {name}",
            value=value,
            op=">=" if op == ">=" else "<=",
            target=target,
            n=n,
            baseline=baseline,
        )

    return [
        figure("requests without 200, 429 or 503", unanswered, "<=", 0, sent),
        figure("refusals without Retry-After", found.without_retry_after, "<=", 0, sent - len(answered)),
        figure("p99 of the 200s / deadline", p99 / deadline_s, "<=", 1, len(answered), deadline_s),
        figure("texts/s answered / capacity", goodput / capacity, ">=", 0.9, len(answered), capacity),
        figure("seconds until latency is back", found.recovery_s, "<=", 5, 1),
        figure("serving still runs", float(alive), ">=", 1, 1),
    ]


# --- the load, in a process of its own ----------------------------------------------------------------------------------


def _load(port: int, header: str, texts: Path, outcomes: "multiprocessing.Queue[Outcomes]") -> None:
    os.nice(5)
    lines = [json.loads(f'"{line}"') for line in texts.read_text(encoding="utf-8").splitlines()]
    outcomes.put(asyncio.run(_run(port, header, lines)))


async def _run(port: int, header: str, lines: list[str]) -> Outcomes:
    found, draw = Outcomes(), random.Random(1)

    def request(texts: int) -> bytes:
        items = [
            {"text": f"{line} {''.join(draw.choices(ascii_lowercase, k=5))}"} for line in draw.sample(lines, texts)
        ]
        body = json.dumps({"items": items})
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: {header}\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode()

    async def probe() -> float:
        started = time.perf_counter()
        status, _ = await _ask(port, request(1))
        return time.perf_counter() - started if status == "200" else float("inf")

    async def capacity(seconds: float) -> float:
        """Return texts a second of CALLERS who wait for each answer; all wait for their last one too, so nobody hangs up."""
        ends, count = time.monotonic() + seconds, 0

        async def caller() -> None:
            nonlocal count
            while time.monotonic() < ends:
                status, _ = await _ask(port, request(TEXTS))
                count += status == "200" and time.monotonic() < ends

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return TEXTS * count / seconds

    async def call() -> None:
        started = time.perf_counter()
        status, retry_after = await _ask(port, request(TEXTS))
        found.statuses[status] += 1
        if status == "200":
            found.seconds.append(time.perf_counter() - started)
            found.in_time += time.monotonic() < load_ends
        elif status in ANSWERS:
            found.without_retry_after += not retry_after

    await capacity(WARM_S)
    found.capacity = await capacity(CAPACITY_S)
    rest = sorted([await probe() for _ in range(PROBES)])[PROBES // 2]
    calls: set[asyncio.Task[None]] = set()
    rate, started, come = TIMES * found.capacity / TEXTS, time.monotonic(), 0
    load_ends = started + SECONDS
    while (elapsed := time.monotonic() - started) < SECONDS:
        while come < elapsed * rate:
            calls.add(task := asyncio.create_task(call()))
            task.add_done_callback(calls.discard)
            come += 1
        await asyncio.sleep(0.002)
    ended = time.monotonic()
    while time.monotonic() < ended + RECOVERY_S:
        # Four in a row: one may have reached the worker that is back first.
        if max([await probe() for _ in range(4)]) < BACK * rest + 0.005:
            found.recovery_s = time.monotonic() - ended
            break
    await asyncio.gather(*calls)
    return found


async def _ask(port: int, request: bytes) -> tuple[str, bool]:
    """Return the status, or the error's name, and whether there is a Retry-After."""
    try:
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.read()  # to the end: the connection is closed after the answer
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return type(error).__name__, False
    return head.split()[1].decode(), b"retry-after:" in head.lower()
