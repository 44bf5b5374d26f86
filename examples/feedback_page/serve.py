"""A web page with Ratchet's feedback widget, and the small server behind it.

The server asks for predictions with the API key. The page gets the prediction's id and token alone, and sends feedback with
them from the browser to Ratchet. Listens on 127.0.0.1:8080, or the port given as the first argument.
"""

import html
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ratchet_client import Client, RatchetError

PAGE = Path(__file__).with_name("index.html")
URL = os.environ.get("RATCHET_URL", "http://127.0.0.1:3000").rstrip("/")
LONGEST_QUESTION = 10_000  # bytes
ratchet = Client(URL)


class Desk(BaseHTTPRequestHandler):
    """Answers GET / with the page, and POST /ask with a prediction."""

    def do_GET(self) -> None:  # the name that http.server calls
        """Return the page."""
        if self.path != "/":
            self.send_error(404)
            return
        page = PAGE.read_text(encoding="utf-8").replace("{{ratchet}}", html.escape(URL))
        self._answer(200, "text/html; charset=utf-8", page.encode())

    def do_POST(self) -> None:
        """Return the prediction for a question: label, prediction id, token, and the labels to choose from."""
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/ask" or length > LONGEST_QUESTION:
            self.send_error(404 if self.path != "/ask" else 413)
            return
        try:
            prediction = ratchet.predict(json.loads(self.rfile.read(length))["text"])
        except (ValueError, KeyError, TypeError):
            self._json(400, {"error": 'expected {"text": "..."}'})
        except RatchetError as error:
            self._json(502, {"error": str(error)})
        else:
            given = {"prediction_id": prediction.prediction_id, "token": prediction.feedback_token}
            self._json(200, given | {"label": prediction.label, "labels": sorted(prediction.probabilities)})

    def _json(self, status: int, value: object) -> None:
        self._answer(status, "application/json", json.dumps(value).encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    with ThreadingHTTPServer(("127.0.0.1", port), Desk) as server:
        print(f"http://127.0.0.1:{port}", flush=True)
        server.serve_forever()
