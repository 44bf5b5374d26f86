"""Mosec as a peer of `PART=peers make bench-serve`: see serve_peers.py."""

import sys
from typing import Any

from mosec import Server, Worker

from tests.bench.serve_peers import BATCH, WAIT_MS, WORKERS, Predictor


class Classifier(Worker):  # type: ignore[misc]  # mosec is an extra
    def __init__(self) -> None:
        super().__init__()
        self.predictor = Predictor()

    def forward(self, data: list[dict[str, str]]) -> list[dict[str, Any]]:
        """Answer a batch of requests."""
        return self.predictor.answer([one["text"] for one in data])


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", sys.argv[1]]  # Mosec reads them
    serving = Server()
    serving.append_worker(Classifier, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    serving.run()
