"""LitServe as a peer of `PART=peers make bench-serve`: see serve_peers.py."""

import sys
from typing import Any

import litserve

from tests.bench.serve_peers import BATCH, WAIT_MS, WORKERS, Predictor


class Classifier(litserve.LitAPI):  # type: ignore[misc]  # litserve is an extra
    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe passes it
        """Load the version, once in each worker."""
        self.predictor = Predictor()

    def decode_request(self, request: dict[str, str]) -> str:
        """Return the text of a request."""
        return request["text"]

    def predict(self, x: list[str]) -> list[dict[str, Any]]:
        """Answer a batch of texts."""
        return self.predictor.answer(x)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the answer as it is."""
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1000)
    serving = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    serving.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
