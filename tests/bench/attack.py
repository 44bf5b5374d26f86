"""`make attack`: what callers without a key, with a token, or who hang up cost a real worker and the honest callers beside them.

Turns one worker over a tiny model, on loopback, into figures of memory, /metrics and honest p99, before and during each attack.
Attackers run in a process of their own, niced, so that the server is measured. Bounded in number and time; ends
by itself. Writes bench-attack.json. It deliberately judges nothing.
"""

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from serving.http.access import issue_token
from serving.http.connections import Limits
from tests.bench.report import Figure, write
from tests.bench.serve_load import memory
from tests.support.served import Served, broker, make_project, served

PATHS, BODIES, SILENT = 10_000, 1_000, 3_000
ATTACK_S, REST_S = 300.0, 5.0  # an attack is ended after ATTACK_S, whatever it has reached
HONEST, PAUSE_S, SAMPLE_S = 4, 0.02, 0.5
TEXTS, PATIENCE_S, CLOSED_LOOP = 64, 2.0, 16
LEARN_S, GOODPUT_S, REPEATS = 5.0, 10.0, 3
ID = "01900000-0000-7000-8000-000000000000"


# --- attackers: each runs in a process of its own -----------------------------------------------------------------------


def unknown_paths(port: int, _secret: str) -> int:
    """Ask for paths that nobody has, each another one of 2 KB; return how many were answered."""
    sent, ends = 0, time.monotonic() + ATTACK_S
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as one:
        while sent < PATHS and time.monotonic() < ends:
            one.request("GET", f"/{sent:06d}{'x' * 2000}")
            one.getresponse().read()
            sent += 1
    return sent


def _bodies(port: int, token: str) -> int:
    body = b'{"prediction_id": "%s", "kind": "rating", "value": [%s0]}' % (ID.encode(), b"0," * 1_999_900)
    head = f"POST /feedback HTTP/1.1\r\nHost: a\r\nX-Feedback-Token: {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    sent, ends = 0, time.monotonic() + ATTACK_S
    for _ in range(BODIES):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as one:
            one.sendall(head.encode() + body)
            one.recv(65536)
        sent += 1
        if time.monotonic() > ends:
            break
    return sent


def bodies_without_a_key(port: int, _secret: str) -> int:
    """Send lists of two million wrong values, 4 MB each, with a forged token; return how many."""
    return _bodies(port, f"4000000000.{'0' * 32}")


def bodies_with_a_token(port: int, secret: str) -> int:
    """Send the same with a token that opens a prediction; return how many."""
    return _bodies(port, issue_token(secret, ID, 4_000_000_000))


def silent_connections(port: int, _secret: str) -> int:
    """Open connections, say nothing, and hold them until the server must have closed all; return how many were opened."""
    opened = []
    for _ in range(SILENT):
        with contextlib.suppress(OSError):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=5))
    time.sleep(Limits().head_s + 2)
    return len(opened)


ATTACKS: dict[str, Callable[[int, str], int]] = {
    "10,000 unknown paths": unknown_paths,
    "1,000 bodies of 4 MB without a key": bodies_without_a_key,
    "1,000 bodies of 4 MB with a token": bodies_with_a_token,
    "3,000 silent connections": silent_connections,
}


def _attack(name: str, port: int, secret: str, events: "multiprocessing.Queue[int]") -> None:
    os.nice(10)
    events.put(0)  # imports are done: from here on it is the attack that costs
    events.put(ATTACKS[name](port, secret))


# --- honest callers -----------------------------------------------------------------------------------------------------


def request_bytes(server: Served, texts: int) -> bytes:
    """A prediction request."""
    body = json.dumps({"items": [{"text": f"the oven and the butter {n}"} for n in range(texts)]})
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: {server.header}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


async def answered(port: int, request: bytes) -> bool:
    """Ask over a connection of its own; return whether it was answered 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return (await reader.readline()).split()[1] == b"200"
    finally:
        writer.transport.abort()


async def _honest(port: int, request: bytes, until: Callable[[], bool]) -> list[float]:
    seconds = []

    async def caller() -> None:
        while not until():
            started = time.perf_counter()
            with contextlib.suppress(OSError, IndexError):
                if await asyncio.wait_for(answered(port, request), 30):
                    seconds.append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(caller() for _ in range(HONEST)))
    return sorted(seconds)


def p99(seconds: list[float]) -> float:
    """Milliseconds that 99 % took at most; `seconds` are sorted."""
    return 1000 * seconds[int(0.99 * (len(seconds) - 1))] if seconds else float("inf")


def _passed(ends: float) -> bool:
    return time.monotonic() > ends


async def _capacity(port: int, request: bytes) -> float:
    """Answers per second to CLOSED_LOOP callers who wait for each answer."""
    ends, count = time.monotonic() + GOODPUT_S, 0

    async def caller() -> None:
        nonlocal count
        while time.monotonic() < ends:
            if await answered(port, request) and time.monotonic() < ends:
                count += 1  # after the await: `count += await ...` would lose what others count meanwhile

    await asyncio.gather(*(caller() for _ in range(CLOSED_LOOP)))
    return count / GOODPUT_S


async def _goodput(port: int, request: bytes, rate: float) -> float:
    """Answers per second within PATIENCE_S, of callers who come at `rate` and then hang up.

    Counts the answers of GOODPUT_S seconds. The LEARN_S before them are not counted: the worker learns in them how long callers
    wait, and works for some who have left.
    """
    started = time.monotonic()
    begins, ends, count = started + LEARN_S, started + LEARN_S + GOODPUT_S, 0

    async def caller() -> None:
        nonlocal count
        with contextlib.suppress(OSError, TimeoutError, IndexError):
            if await asyncio.wait_for(answered(port, request), PATIENCE_S) and begins < time.monotonic() < ends:
                count += 1

    callers: set[asyncio.Task[None]] = set()
    come = 0
    while (now := time.monotonic()) < ends:
        while come < (now - started) * rate:
            callers.add(task := asyncio.create_task(caller()))
            task.add_done_callback(callers.discard)
            come += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*callers)
    return count / GOODPUT_S


# --- measures -----------------------------------------------------------------------------------------------------------


def metrics_bytes(server: Served) -> int:
    """Size of /metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as response:  # noqa: S310 - our own address
        return len(response.read())


def resident_bytes(process: psutil.Process) -> int:
    """Resident bytes of a process and its children: more than they own, but cheap to ask for."""
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    every = [process, *process.children(recursive=True)]
    return float(sum(one.cpu_times().user + one.cpu_times().system for one in every))


def measure(name: str, server: Served, rest: float) -> list[Figure]:
    """Attack once, with honest callers beside it: memory and their p99, against before."""
    before, cpu = sum(memory(server.process)), cpu_seconds(server.process)
    context = multiprocessing.get_context("spawn")
    events: multiprocessing.Queue[int] = context.Queue()
    attacker = context.Process(target=_attack, args=(name, server.port, server.keys.secret, events))
    attacker.start()
    events.get(timeout=60)
    resident = [resident_bytes(server.process)]
    sampled = [time.monotonic()]

    def ended() -> bool:
        if time.monotonic() - sampled[-1] > SAMPLE_S:
            sampled.append(time.monotonic())
            resident.append(resident_bytes(server.process))
        return not attacker.is_alive()

    seconds = asyncio.run(_honest(server.port, request_bytes(server, 1), ended))
    count = events.get(timeout=5)
    attacker.join(10)
    after, cpu = sum(memory(server.process)), cpu_seconds(server.process) - cpu
    print(
        f"{name}: {count:,} in all, {cpu:.1f} s of CPU, memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB, "
        f"at most +{(max(resident) - resident[0]) / 1e6:.0f} MB; {len(seconds)} honest calls, "
        f"median {1000 * seconds[len(seconds) // 2]:.1f} ms, p99 {p99(seconds):.1f} ms, at rest {rest:.1f} ms",
        flush=True,
    )
    return [
        Figure(
            figure=f"memory after / before {name}", value=after / before, op="<=", target=1.1, n=count, baseline=before
        ),
        Figure(
            figure=f"p99 / at rest, during {name}",
            value=p99(seconds) / rest,
            op="<=",
            target=2,
            n=len(seconds),
            baseline=rest,
        ),
    ]


def main() -> None:
    """Measure everything on one server."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with us
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SILENT + 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)) if hard >= 0 else wanted, hard))
    with tempfile.TemporaryDirectory(prefix="ratchet-attack-") as folder:
        config = make_project(Path(folder) / "project", workers=1)
        with broker(Path(folder)) as address, served(config, address) as server:
            write("attack", figures(server, set(sys.argv[1:])))


def figures(server: Served, parts: set[str]) -> list[Figure]:
    """All figures, or those of some parts: `paths`, `key`, `token`, `connections` or `hang-up`."""
    one, many, found = request_bytes(server, 1), request_bytes(server, TEXTS), []
    for _ in range(2):  # the first time warms up
        ends = time.monotonic() + REST_S
        rest = p99(asyncio.run(_honest(server.port, one, partial(_passed, ends))))
    told = metrics_bytes(server)
    for name in ATTACKS:
        if not parts or name.split()[-1] in parts:
            found += measure(name, server, rest)
    grown = metrics_bytes(server) / told
    found.append(Figure(figure="/metrics after / before", value=grown, op="<=", target=1.1, n=PATHS, baseline=told))
    if not parts or "hang-up" in parts:
        found.append(_hang_ups(server.port, many))
    return found


def _hang_ups(port: int, request: bytes) -> Figure:
    """Goodput at 3 x load over capacity, which is measured before and after each run: another load on the machine shifts both."""
    shares, capacity = [], max(asyncio.run(_capacity(port, request)) for _ in range(2))  # the first time warms up
    for _ in range(REPEATS):
        goodput = asyncio.run(_goodput(port, request, 3 * capacity))
        before, capacity = capacity, asyncio.run(_capacity(port, request))
        shares.append(2 * goodput / (before + capacity))
        print(
            f"capacity {before:.1f} and {capacity:.1f} requests/s of {TEXTS} texts; {goodput:.1f} answered in time at 3 x load",
            flush=True,
        )
    return Figure(
        figure=f"answers within {PATIENCE_S:.0f} s at 3 x load / capacity, callers hang up",
        value=median(shares),
        op=">=",
        target=0.8,
        n=REPEATS,
        interval=(min(shares), max(shares)),
        baseline=capacity,
    )


if __name__ == "__main__":
    main()
