"""A token endpoint on loopback: OAuth 2.0 client credentials (RFC 6749, section 4.4), as an identity provider has one.

Turns a client's id and secret into an unsigned token (RFC 7519, section 6), which Apache Kafka's own validator of unsecured
tokens accepts: a signature is only needed where a broker knows the issuer's keys.
"""

import base64
import contextlib
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from tests.support.kafka_security import token


class TokenServer(ThreadingHTTPServer):
    """Gives client `app` a token for its secret, and refuses everybody else.

    `lives_s` is how long a token is valid, `claims_s` what the answer says of it (None: the truth), `status` the answer's status
    (None: the right one), `delay_s` how long it waits before it answers. `issued` and `scopes` are what it gave.
    """

    daemon_threads = True
    secret: ClassVar[str] = "app secret/%:ü"  # as hard to encode as a password may be

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.lives_s, self.claims_s = 3600.0, None  # type: float, float | None
        self.status: int | None = None
        self.delay_s = 0.0
        self.issued: list[str] = []
        self.scopes: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/oauth2/token"


class _Request(BaseHTTPRequestHandler):
    server: TokenServer

    def do_POST(self) -> None:
        server = self.server
        time.sleep(server.delay_s)
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        pair = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        client, _, secret = (urllib.parse.unquote(part) for part in pair.partition(":"))
        if server.status is not None:
            self._answer(server.status, {})
        elif self.path != "/oauth2/token":
            self._answer(404, {})
        elif form.get("grant_type") != ["client_credentials"]:
            self._answer(400, {"error": "unsupported_grant_type"})
        elif (client, secret) != ("app", server.secret):
            self._answer(401, {"error": "invalid_client", "error_description": f"who is {client}?"})
        elif form.get("scope") == ["forbidden"]:
            self._answer(400, {"error": "invalid_scope"})
        else:
            given = token("app", server.lives_s)
            server.issued.append(given)
            server.scopes += form.get("scope", [])
            expires_in = server.lives_s if server.claims_s is None else server.claims_s
            self._answer(200, {"access_token": given, "token_type": "bearer", "expires_in": expires_in})

    def _answer(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextlib.contextmanager
def token_server(port: int = 0) -> Iterator[TokenServer]:
    """Run the server until the block ends."""
    server = TokenServer(port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
