"""Connections as bytes: a real uvicorn with limits for them, and what comes back on each.

Turns an ASGI app and limits into a server on a port of its own, and what a socket receives into a status and a body.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import uvicorn

from serving.http.asgi import Message, Receive, Send
from serving.http.connections import Limits, OpenConnections
from serving.http.listening import protocol
from tests.support.fakes import free_port, wait_until

ANSWER_S = 30.0  # nothing here takes as long: what is neither answered nor closed by then never is


class App(Protocol):
    """An ASGI app."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None: ...


@contextlib.contextmanager
def bounded(app: App, limits: Limits) -> Iterator[tuple[int, OpenConnections]]:
    """Serve `app` under limits until the block ends: the port, and the connections that are open."""
    limited = protocol(limits)
    port = free_port()
    config = uvicorn.Config(app, port=port, http=limited, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    try:
        yield port, limited.opened
    finally:
        running.should_exit = True
        thread.join(10)


def opened(port: int) -> socket.socket:
    """A connection to the server."""
    return socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)


def answer(port: int, *parts: bytes) -> tuple[int, Any]:
    """Status and body of what comes back until the server closes, or has answered once."""
    with opened(port) as one:
        for part in parts:
            one.sendall(part)
        return read_one(one)


def read_one(one: socket.socket) -> tuple[int, Any]:
    """Status and body of the next answer."""
    found = b""
    while b"\r\n\r\n" not in found:
        more = one.recv(65536)
        assert more, found
        found += more
    head, _, body = found.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += one.recv(65536)
    text = body[:length].decode()
    return int(head.split(b" ")[1]), json.loads(text) if text.startswith("{") else text


def seconds_until_closed(one: socket.socket) -> float:
    """Seconds until the server closes; raises TimeoutError if it does not within ANSWER_S."""
    started = time.monotonic()
    try:
        while one.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - started
