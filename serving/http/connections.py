"""HTTP/1.1 connections with limits: uvicorn's protocol, bounded in time, bytes and number.

Turns sockets into requests of bounded size, or into a refusal in JSON. listening.py gives it to uvicorn; one worker shares one
`OpenConnections`. It deliberately knows no routes and no keys: everything here also holds for callers without a key.

A sweep each second closes what is overdue, so that a request costs no timer. Past the limit of connections a new one takes the
place of the one that was silent longest.
"""

import asyncio
import http
import logging
import time
from dataclasses import dataclass
from typing import ClassVar

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger("ratchet.connections")

LOG_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one connection, and all connections of one worker, may take.

    `head_s` and `body_s` are the seconds in which a request's headers and its body have to arrive; `stalled_s` is how long a
    caller may leave an answer unread; `linger_s` how long a refused caller may take to read the refusal. All this is looked at
    every `sweep_s` seconds.
    """

    connections: int = 1000
    url_bytes: int = 16_384
    head_bytes: int = 65_536
    headers: int = 100
    body_bytes: int = 4_000_000
    pipelined: int = 8
    head_s: float = 20.0
    body_s: float = 60.0
    idle_s: float = 75.0
    stalled_s: float = 30.0
    linger_s: float = 2.0
    sweep_s: float = 1.0


class Unacceptable(Exception):
    """A request that is refused before any route sees it."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class OpenConnections:
    """The connections of one worker: who was silent longest, who is overdue, and one log line a minute for refusals."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.silent: dict[Connection, None] = {}  # no request yet, oldest first
        self.idle: dict[Connection, None] = {}  # between two requests, longest first
        self._everyone: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._refusals, self._told_at = 0, -LOG_EVERY_S

    def __len__(self) -> int:
        """How many are open."""
        return len(self._everyone)

    def add(self, connection: "Connection") -> None:
        """Take a new connection in; past the limit, close the one that was silent longest, or refuse the new one."""
        self._everyone.add(connection)
        self.silent[connection] = None
        if self._sweeping is None:
            self._sweeping = connection.loop.call_later(self.limits.sweep_s, self._sweep, connection.loop)
        if len(self._everyone) > self.limits.connections:
            longest = next(iter(self.silent if len(self.silent) > 1 else self.idle or self.silent))
            if longest is connection:  # all others have a request under way
                connection.transport.write(_refusal(503, "too many connections: try again later"))
                connection.transport.close()
            else:
                longest.transport.abort()
            self.remove(longest)
            self.tell(f"more than {self.limits.connections} connections: closed the one that was silent longest")

    def remove(self, connection: "Connection") -> None:
        """Forget a connection."""
        self._everyone.discard(connection)
        self.silent.pop(connection, None)
        self.idle.pop(connection, None)

    def tell(self, what: str) -> None:
        """Log a refusal, at most once in LOG_EVERY_S, with the number of those not logged."""
        now = time.monotonic()
        if now - self._told_at < LOG_EVERY_S:
            self._refusals += 1
            return
        more = f" (and {self._refusals} refusals since the last such line)" if self._refusals else ""
        log.warning("%s%s", what, more)
        self._refusals, self._told_at = 0, now

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in tuple(self._everyone):
            connection.check(now)
        self._sweeping = loop.call_later(self.limits.sweep_s, self._sweep, loop) if self._everyone else None


class Connection(HttpToolsProtocol):
    """One connection. listening.py makes the class that a worker uses."""

    opened: ClassVar[OpenConnections]

    deadline = 0.0  # of what is awaited from the caller: headers, body or the next request
    stalled_at: float | None = None
    lingering = False
    reading = reading_head = fresh = False
    received = head_bytes = body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.timeout_keep_alive = self.opened.limits.idle_s  # type: ignore[assignment]
        self.deadline = self.loop.time() + self.opened.limits.head_s
        self.opened.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.opened.remove(self)
        super().connection_lost(exc)

    def check(self, now: float) -> None:
        """Close or refuse the caller that is overdue at `now` (seconds of the loop's clock)."""
        if self.stalled_at is not None:
            if now - self.stalled_at > self.opened.limits.stalled_s:
                self.transport.abort()
        elif self.transport.is_closing():
            self.stalled_at = now  # closes once the caller has read what is left
        elif now > self.deadline:
            if self.lingering:
                self.transport.abort()
            elif self.reading:
                self.refuse(408, "the request took too long to arrive")
            else:
                self.transport.close()

    # --- what arrives -------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse; refuse what is malformed or too large."""
        if self.lingering:
            return
        self._unset_keepalive_if_required()
        self.fresh = False
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if isinstance(cause, Unacceptable):
                self.refuse(cause.status, str(cause))
            else:
                self.refuse(400, "the request is not valid HTTP/1.1")
            return
        self.received = len(data) if self.fresh else self.received + len(data)
        # What is neither headers nor body (chunk sizes, trailers) may not be more than both.
        if self.reading and self.received > self.opened.limits.head_bytes + 2 * self.body_bytes:
            self.refuse(431 if self.reading_head else 400, "the headers or chunk sizes are too large")

    def on_message_begin(self) -> None:
        """Start to count a request."""
        super().on_message_begin()
        self.reading = self.reading_head = self.fresh = True
        self.head_bytes = self.body_bytes = 0
        self.deadline = self.loop.time() + self.opened.limits.head_s

    def on_url(self, url: bytes) -> None:
        """Take a part of the address. Raises Unacceptable past the limit."""
        super().on_url(url)
        if len(self.url) > self.opened.limits.url_bytes:
            raise Unacceptable(414, f"the address is longer than {self.opened.limits.url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers, which come after a body, are left out. Raises Unacceptable past the limits."""
        if not self.reading_head:
            return
        self.head_bytes += len(name) + len(value)
        limits = self.opened.limits
        if self.head_bytes > limits.head_bytes or len(self.headers) >= limits.headers:
            raise Unacceptable(431, f"more than {limits.headers} headers, or {limits.head_bytes} bytes of them")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request. Raises Unacceptable for upgrades and for too many requests that wait for an earlier answer."""
        if self.parser.should_upgrade():
            raise Unacceptable(400, "upgrades (websocket, h2c) and CONNECT are not supported: send plain HTTP/1.1")
        super().on_headers_complete()
        self.reading_head = False
        if len(self.pipeline) > self.opened.limits.pipelined:
            raise Unacceptable(400, "too many pipelined requests")
        self.opened.silent.pop(self, None)
        self.opened.idle.pop(self, None)
        self.deadline = self.loop.time() + self.opened.limits.body_s

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; one that nobody reads any more, up to the limit."""
        self.body_bytes += len(body)
        if self.cycle.response_complete and self.body_bytes > self.opened.limits.body_bytes:
            self._linger()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for nothing from the caller, or for the next request if this one is answered already."""
        super().on_message_complete()
        self.reading, self.deadline = False, float("inf")
        if self.cycle.response_complete:
            self._await_next()

    # --- what leaves --------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Wait for the next request, if it is not there already."""
        pipelined = bool(self.pipeline)
        super().on_response_complete()
        if not pipelined and not self.reading:
            self._await_next()

    def _await_next(self) -> None:
        if not self.transport.is_closing():
            self.deadline = self.loop.time() + self.opened.limits.idle_s
            self.opened.idle[self] = None

    def pause_writing(self) -> None:
        """Note when the caller stopped to read."""
        self.stalled_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The caller reads again."""
        self.stalled_at = None
        super().resume_writing()

    def refuse(self, status: int, error: str) -> None:
        """Answer in JSON and close; without an answer where one has been begun already."""
        self.opened.tell(f"{status}: {error}")
        cycle = self.cycle
        if self.reading and not self.reading_head and cycle.response_complete:  # answered before its body was there
            self._linger()
            return
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(_refusal(status, error))
        self._linger()

    def _linger(self) -> None:
        """Say that nothing more is answered and discard what comes: to close at once might lose the answer on its way."""
        self.lingering = True
        self.deadline = self.loop.time() + self.opened.limits.linger_s
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


def _refusal(status: int, error: str) -> bytes:
    body = orjson.dumps({"error": error, "detail": []})
    head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
