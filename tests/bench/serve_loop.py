"""`python -m tests.bench.serve_loop`: CPU of the event loop for a request, without sockets, model and broker.

Turns requests of one text into microseconds of the thread that answers them: HTTP, key, JSON, checks, answer, event and
metrics, for a model of 77 labels. Sixteen connections hand over their bytes, and the probabilities stand ready: what a batch or a
broker costs is in `PART=speed make bench-serve`. CPU time says something beside other loads too; compare runs in turn.
"""

import asyncio
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from schemas.manifests import Calibration
from schemas.settings import load_settings
from serving.http.access import Keys
from serving.http.connections import Connection, Limits
from serving.http.front import Front
from serving.http.listening import protocol
from serving.inference.batching import EncoderResult
from serving.inference.outputs import ClassificationOutputs
from tests.support.guards import lone_guard

LABELS = [f"some_bank_label_{n}" for n in range(77)]
CONNECTIONS, ROUNDS, REPEATS = 16, 60, 8
KEY = "k" * 43


class Ready:
    """In place of the model and the outbox: answers stand ready once CONNECTIONS requests wait, and events are dropped."""

    def __init__(self) -> None:
        manifest = SimpleNamespace(model_version="v", task="classification", labels=LABELS, max_new_tokens=1)
        outputs = ClassificationOutputs(LABELS, Calibration())
        self.runtime = cast(Any, SimpleNamespace(manifest=manifest, outputs=outputs))
        self.labels = None
        self._probabilities = np.random.default_rng(0).dirichlet(np.full(len(LABELS), 0.1), size=1000)
        self._waiting: list[asyncio.Future[EncoderResult]] = []

    def current(self) -> tuple[Any, int]:
        return self.runtime, 1

    def refresh_labels(self) -> None:
        return

    def check(self, _timeout_s: float) -> None:
        return

    def put_prediction_bytes(self, _prediction_id: str, _event: bytes) -> None:
        return

    async def submit(self, _texts: list[str], _timeout_s: float) -> EncoderResult:
        future: asyncio.Future[EncoderResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if len(self._waiting) == CONNECTIONS:
            for n, one in enumerate(self._waiting):
                one.set_result(EncoderResult(self.runtime, 1, self._probabilities[n : n + 1]))
            self._waiting = []
        return await future


class Wire(asyncio.Transport):
    """A transport that drops what is written."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 3000) if name in ("peername", "sockname") else default

    def write(self, _data: bytes | bytearray | memoryview) -> None:
        return

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        return


async def measure(folder: Path) -> float:
    """Return the CPU microseconds of a request: the least of REPEATS runs."""
    from serving.api import Api
    from serving.http.metrics import Metrics

    settings, keys = load_settings('[model]\nname = "m"\n', {}, root=folder), Keys(KEY, "s" * 43)
    ready = cast(Any, Ready())
    api = Api(settings, keys, ready, ready, ready, ready, Metrics("m"), lone_guard(settings, keys))
    config = Config(app=Front(api, api, folder), log_config=None, server_header=False)
    config.load()
    kind, state = protocol(Limits(), workers=1), ServerState()
    connections: list[Connection] = []
    for _ in range(CONNECTIONS):
        connections.append(kind(config=config, server_state=state, app_state={}))
        connections[-1].connection_made(Wire())
    await _rounds(connections, ROUNDS)
    least = float("inf")
    for _ in range(REPEATS):
        started = time.thread_time()
        await _rounds(connections, ROUNDS)
        least = min(least, time.thread_time() - started)
    return 1e6 * least / (ROUNDS * CONNECTIONS)


async def _rounds(connections: list[Connection], rounds: int) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nAuthorization: Bearer {KEY}\r\n"
    for n in range(rounds):
        body = b'{"items": [{"text": "I am still waiting on my card? word%d"}]}' % n
        request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        for connection in connections:
            connection.data_received(request)
        while not all(connection.cycle.response_complete for connection in connections):
            await asyncio.sleep(0)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = name  # as in a worker; read when metrics are imported
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(f"{runner.run(measure(Path(name))):.1f} CPU microseconds a request on the loop")


if __name__ == "__main__":
    main()
