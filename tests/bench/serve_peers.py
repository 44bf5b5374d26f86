"""Peers of `PART=peers make bench-serve`: Mosec and LitServe with the very same artefact as Ratchet serves.

Each answers {"text"} with label, confidence and all probabilities, from two workers in batches of at most 16 within 2 ms. They
tokenise, run and calibrate with Ratchet's own `Runtime`, so what differs is the server. They write no events and give no tokens,
which is in their favour. `python -m tests.bench.serve_peer_mosec PORT` starts one; PEER_VERSION names the version's folder.
Both come with the extra `bench`. This module knows neither: their modules import it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from serving.inference.encoder_runtime import Runtime
from tests.bench.serve_load import Body, module, server
from tests.support.fakes import free_port

BODY = Body('{"text": ', '"', '"', "}")
WORKERS, BATCH, WAIT_MS = 2, 16, 2
PEERS = {"mosec": ("/inference", "/metrics"), "litserve": ("/predict", "/health")}  # route, readiness


class Predictor:
    """A version that answers lists of texts."""

    def __init__(self) -> None:
        self.runtime = Runtime(Path(os.environ["PEER_VERSION"]), threads=1)

    def answer(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return label, confidence and probabilities of each text."""
        labels = self.runtime.labels
        rows = self.runtime.run(self.runtime.encode(texts))
        return [
            {
                "label": labels[int(row.argmax())],
                "confidence": float(row.max()),
                "probabilities": dict(zip(labels, row.tolist(), strict=True)),
            }
            for row in rows
        ]


@contextmanager
def peer(name: str, version: Path, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start a peer: the address of its route, and its process."""
    port, (route, ready) = free_port(), PEERS[name]
    environment = {"PEER_VERSION": str(version), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [*module(f"tests.bench.serve_peer_{name}"), str(port)]
    url = f"http://127.0.0.1:{port}"
    with server(command, environment, log, f"{url}{ready}") as process:
        yield f"{url}{route}", process
