"""PART=observability of `make bench-serve`: what traces and a scraped /metrics cost in throughput.

Turns three servers in turn into ratios of requests a second, and of the servers' CPU time a request, which other load disturbs
less: one without traces, one that traces its default share and is scraped every five seconds, and one that traces every request.
The collector is a process of its own that reads each export and answers 200.
"""

import contextlib
import multiprocessing
import statistics
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import httpx

from tests.bench.report import Figure
from tests.bench.serve_load import RATCHET_BODY, Load, wrk
from tests.bench.serve_project import Project, project, ratchet
from tests.support.fakes import free_port, wait_until

ROUNDS, WARM_S, SECONDS, CALLERS = 3, 4, 10, 32
COST = 0.05  # of the throughput, at most
SCRAPE_S = 5.0  # Prometheus scrapes once a minute unless it is told otherwise
NONE, DEFAULT, EVERY = "none", "traces of 1 % and scrapes", "traces of every request and scrapes"


class Collector(BaseHTTPRequestHandler):
    """Reads an export and accepts it."""

    def do_POST(self) -> None:
        """Answer 200 to what it has read."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        """Say that it is there."""
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def _collect(port: int) -> None:
    ThreadingHTTPServer(("127.0.0.1", port), Collector).serve_forever()


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Run a collector; yields the address for traces."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_collect, args=(port,))
    process.start()
    address = f"http://127.0.0.1:{port}/v1/traces"
    try:
        wait_until(lambda: _answers(address), timeout_s=30)
        yield address
    finally:
        process.terminate()
        process.join(10)


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def measure() -> list[Figure]:
    """Measure in turn; figures are medians of ratios."""
    bank, found = project(), dict[str, list[tuple[Load, Load]]]()
    with collector() as address:
        traced = {"RATCHET_OBSERVABILITY__TRACES": address}
        servers = {NONE: {}, DEFAULT: traced, EVERY: traced | {"RATCHET_OBSERVABILITY__TRACE_SHARE": "1"}}
        order = list(servers)
        for _ in range(ROUNDS):
            loads = {what: _load(bank, servers[what], scraped=what != NONE) for what in order}
            print(", ".join(f"{what}: {load.rate:.0f} requests/s" for what, load in loads.items()), flush=True)
            for what in (DEFAULT, EVERY):
                found.setdefault(what, []).append((loads[what], loads[NONE]))
            order = [*order[1:], order[0]]  # each comes first, second and last once
    figures = []
    for what, runs in found.items():
        rates = [load.rate / plain.rate for load, plain in runs]
        figures.append(_figure(f"requests/s, {what} / none", ">=", 1 - COST, rates, runs, goal=what == EVERY))
        cpu = [load.cpu / plain.cpu for load, plain in runs]
        figures.append(_figure(f"CPU s a request, {what} / none", "<=", 1 + COST, cpu, runs, goal=what == EVERY))
    return figures


def _figure(
    name: str, op: Literal[">=", "<="], target: float, ratios: list[float], runs: list[tuple[Load, Load]], *, goal: bool
) -> Figure:
    requests, interval = sum(load.requests for load, _ in runs), (min(ratios), max(ratios))
    return Figure(
        figure=name, value=statistics.median(ratios), op=op, target=target, n=requests, interval=interval, goal=goal
    )


def _load(bank: Project, variables: dict[str, str], *, scraped: bool) -> Load:
    """Load a server with these settings."""
    with ratchet(bank, bank.auto, **variables) as (url, process, _), _scraping(url, on=scraped):
        loads = [
            wrk(
                f"{url}/predict", bank.texts, RATCHET_BODY,
                callers=CALLERS, seconds=seconds, header=bank.header, servers=[process],
            )
            for seconds in (WARM_S, SECONDS)
        ]  # fmt: skip
    return loads[-1]


@contextlib.contextmanager
def _scraping(url: str, *, on: bool) -> Iterator[None]:
    """Read /metrics every SCRAPE_S seconds inside the `with`."""
    stop = threading.Event()

    def scrape() -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not stop.wait(SCRAPE_S):
                client.get(f"{url}/metrics").raise_for_status()

    thread = threading.Thread(target=scrape)
    if on:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if on:
            thread.join()
