"""PART=observability of `make bench-serve`: what traces and a scraped /metrics cost in throughput.

Turns three servers in turn into ratios of requests a second: one without traces, one that traces its default share and is scraped
every second, and one that traces every request. The collector is a process of its own that reads each export and answers 200.
"""

import contextlib
import multiprocessing
import statistics
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.bench.report import Figure
from tests.bench.serve_load import RATCHET_BODY, wrk
from tests.bench.serve_project import Project, project, ratchet
from tests.support.fakes import free_port, wait_until

ROUNDS, WARM_S, SECONDS, CALLERS = 3, 4, 10, 32
COST = 0.05  # of the throughput, at most
SCRAPE_S = 1.0


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
    bank, found = project(), dict[str, list[tuple[float, float, int]]]()
    with collector() as address:
        observed = {
            "traces of 1 % and /metrics each second": {"RATCHET_OBSERVABILITY__TRACES": address},
            "traces of every request": {
                "RATCHET_OBSERVABILITY__TRACES": address,
                "RATCHET_OBSERVABILITY__TRACE_SHARE": "1",
            },
        }
        for _ in range(ROUNDS):
            plain, _ = _rate(bank, {}, scraped=False)
            for what, variables in observed.items():
                rate, requests = _rate(bank, variables, scraped=True)
                print(f"{what}: {rate:.0f} requests/s; without: {plain:.0f}", flush=True)
                found.setdefault(what, []).append((rate / plain, plain, requests))
    figures = []
    for what, runs in found.items():
        ratios, plains = [ratio for ratio, _, _ in runs], [plain for _, plain, _ in runs]
        figures.append(
            Figure(
                figure=f"requests/s with / without {what}",
                value=statistics.median(ratios),
                op=">=",
                target=1 - COST,
                n=sum(requests for _, _, requests in runs),
                interval=(min(ratios), max(ratios)),
                baseline=statistics.median(plains),
                goal="every" in what,
            )
        )
    return figures


def _rate(bank: Project, variables: dict[str, str], *, scraped: bool) -> tuple[float, int]:
    """Requests a second of a server with these settings, and their number."""
    with ratchet(bank, bank.auto, **variables) as (url, _, _), _scraping(url, on=scraped):
        loads = [
            wrk(f"{url}/predict", bank.texts, RATCHET_BODY, callers=CALLERS, seconds=seconds, header=bank.header)
            for seconds in (WARM_S, SECONDS)
        ]
    return loads[-1].rate, loads[-1].requests


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
