"""Malformed HTTP requests as bytes, and what a server makes of them.

Damages valid requests at random, by a seed, and sends each over a connection of its own. If no answer comes, because the request
is not complete, the connection is closed for writing, and must then end.
The tests of the OpenAPI document and `make bench-openapi` call it.
"""

import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

BODY = b'{"items": [{"text": "where is my card?", "metadata": {"channel": "ios"}}], "options": {"coverage": 0.9}}'
FEEDBACK = b'{"prediction_id": "01900000-0000-7000-8000-000000000000", "kind": "rating", "value": "up"}'
ODD = (
    b"\x00",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b":",
    b" ",
    b"\xff",
    b"\xed\xa0\x80",
    b"-1",
    b"9" * 40,
    b"A" * 20_000,
    b"%00",
    b"{" * 3000,
)
ANSWER_S, PATIENCE_S = 0.5, 20.0


def valid_requests(header: str) -> list[bytes]:
    """Return a valid request of each kind: predict, feedback, chunked, gzip announced, model, probe."""
    key = f"Authorization: {header}\r\nHost: a\r\n".encode()

    def post(path: bytes, body: bytes, extra: bytes = b"") -> bytes:
        return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (path, key, extra, len(body), body)

    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    return [
        post(b"/predict", BODY),
        post(b"/feedback", FEEDBACK),
        post(b"/predict", BODY, b"Content-Encoding: gzip\r\n"),
        b"POST /predict HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b" % (key, chunks),
        b"GET /model HTTP/1.1\r\n%b\r\n" % key,
        b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    ]


def damaged(request: bytes, draw: random.Random) -> bytes:
    """Return the request with one to four random edits: a byte changed, a part cut, doubled or moved, something odd inserted."""
    for _ in range(draw.randint(1, 4)):
        at, end = sorted(draw.randrange(len(request) + 1) for _ in range(2))
        match draw.randrange(6):
            case 0:
                request = request[:at] + bytes([draw.randrange(256)]) + request[at + 1 :]
            case 1:
                request = request[:at] + request[end:]
            case 2:
                request = request[:end] + request[at:]
            case 3:
                request = request[end:] + request[:at]
            case 4:
                request = request[:at]
            case _:
                request = request[:at] + draw.choice(ODD) + request[at:]
        request = request or b"\r\n"
    return request


def outcome(port: int, request: bytes) -> str:
    """Return the first answer's status, `closed` if there was none, or `hang` if no end came within PATIENCE_S."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as one:
            one.sendall(request)
            one.settimeout(ANSWER_S)
            try:
                first = one.recv(65536)
            except TimeoutError:
                first = b""
                one.settimeout(PATIENCE_S)
                one.shutdown(socket.SHUT_WR)
                while part := one.recv(65536):
                    first = first or part
    except TimeoutError:
        return "hang"
    except OSError:  # reset while sending: refused unread
        return "closed"
    return first.split(b" ", 2)[1].decode("latin-1") if first.startswith(b"HTTP/1.") else "closed"


def outcomes(port: int, header: str, count: int, seed: int, *, threads: int = 16) -> "Counter[str]":
    """Send `count` damaged requests and count what became of them."""
    draw, valid = random.Random(seed), valid_requests(header)
    requests = [damaged(draw.choice(valid), draw) for _ in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return Counter(pool.map(lambda request: outcome(port, request), requests))
