"""HTTP/1.1 connections with limits: uvicorn's protocol, bounded in time, bytes and number.

Turns sockets into requests of bounded size, or refuses them in JSON. listening.py passes the class to uvicorn; the connections of
one worker share one `OpenConnections`. It knows no routes and no keys, so its limits also hold for callers without a key.

A sweep each second closes overdue connections, so a request needs no timer. Past the limit of connections, a new one replaces the
one that has been silent longest.
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

from serving.http import upgrades

log = logging.getLogger("ratchet.connections")

LOG_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one connection, and of all connections of one worker.

    A request's headers must arrive within `head_s` seconds and its body within `body_s`, or within `rest_s` once the response
    is sent. `idle_s` is the longest pause between two requests, `stalled_s` the longest time that a response may stay unread. A
    refused caller has `linger_s` seconds to read the refusal. The limits are checked every `sweep_s` seconds.
    """

    connections: int = 1000
    url_bytes: int = 16_384
    head_bytes: int = 65_536
    headers: int = 100
    body_bytes: int = 4_000_000
    pipelined: int = 8
    head_s: float = 20.0
    body_s: float = 60.0
    rest_s: float = 5.0
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
    """The connections of one worker, ordered by silence; logs refusals at most once a minute."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.silent: dict[Connection, None] = {}  # no request yet, oldest first
        self.idle: dict[Connection, None] = {}  # between two requests, longest first
        self._everyone: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._refusals, self._logged_at = 0, -LOG_EVERY_S

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._everyone)

    def add(self, connection: "Connection") -> None:
        """Add a new connection. Past the limit, close the one that has been silent longest, or refuse the new one."""
        self._everyone.add(connection)
        self.silent[connection] = None
        if self._sweeping is None:
            self._sweeping = connection.loop.call_later(self.limits.sweep_s, self._sweep, connection.loop)
        if len(self._everyone) > self.limits.connections:
            longest = next(iter(self.silent if len(self.silent) > 1 else self.idle or self.silent))
            if longest is connection:  # all others are serving a request
                connection.transport.write(_refusal(503, "too many connections: try again later"))
                connection.transport.close()
            else:
                longest.transport.abort()
            self.remove(longest)
            self.log_refusal(f"at most {self.limits.connections} connections: closed the one that was silent longest")

    def remove(self, connection: "Connection") -> None:
        """Remove a connection that was lost or closed."""
        self._everyone.discard(connection)
        self.silent.pop(connection, None)
        self.idle.pop(connection, None)

    def log_refusal(self, reason: str) -> None:
        """Log a refusal, at most once in LOG_EVERY_S seconds, with the number of refusals not logged."""
        now = time.monotonic()
        if now - self._logged_at < LOG_EVERY_S:
            self._refusals += 1
            return
        more = f" (and {self._refusals} refusals since the last such line)" if self._refusals else ""
        log.warning("%s%s", reason, more)
        self._refusals, self._logged_at = 0, now

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in tuple(self._everyone):
            connection.check(now)
        self._sweeping = loop.call_later(self.limits.sweep_s, self._sweep, loop) if self._everyone else None


class Connection(HttpToolsProtocol):
    """One connection. listening.py derives the class that a worker uses."""

    opened: ClassVar[OpenConnections]

    deadline = 0.0  # for what the caller sends next: headers, body or a new request
    stalled_at: float | None = None
    lingering = False
    reading = reading_head = fresh = False
    received = head_bytes = body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline of the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.timeout_keep_alive = self.opened.limits.idle_s  # type: ignore[assignment]
        self.deadline = self.loop.time() + self.opened.limits.head_s
        self.opened.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the open ones."""
        self.opened.remove(self)
        super().connection_lost(exc)

    def check(self, now: float) -> None:
        """Close the connection or refuse its request if it is overdue at `now`, in seconds of the event loop's clock."""
        if self.stalled_at is not None:
            if now - self.stalled_at > self.opened.limits.stalled_s:
                self.transport.abort()
        elif self.transport.is_closing():
            self.stalled_at = now  # it closes once the caller has read the rest
        elif now > self.deadline:
            if self.lingering:
                self.transport.abort()
            elif self.reading:
                self.refuse(408, "the request took too long to arrive")
            else:
                self.transport.close()

    # --- receiving ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; refuse a malformed or too large request."""
        if self.lingering:
            return
        self._unset_keepalive_if_required()
        self.fresh = False
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Unacceptable):
                self.refuse(cause.status, str(cause))
            else:
                self.refuse(400, "the request is not valid HTTP/1.1")
            return
        self.received = len(data) if self.fresh else self.received + len(data)
        # Bytes outside headers and body (chunk sizes, trailers) may not outnumber both together.
        if self.reading and self.received > self.opened.limits.head_bytes + 2 * self.body_bytes:
            self.refuse(431 if self.reading_head else 400, "the headers or chunk sizes are too large")

    def _parse(self, data: bytes) -> None:
        """Parse bytes. An upgrade is ignored, as RFC 9110, section 7.8, allows: the request is parsed again without it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head = upgrades.without(self.parser, self.url, self.headers)
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self._parse(head + data[upgrade.args[0] :])

    def on_message_begin(self) -> None:
        """Reset the counters and the deadline for a new request."""
        super().on_message_begin()
        self.reading = self.reading_head = self.fresh = True
        self.head_bytes = self.body_bytes = 0
        self.deadline = self.loop.time() + self.opened.limits.head_s

    def on_url(self, url: bytes) -> None:
        """Collect a part of the URL. Raises Unacceptable past the limit."""
        super().on_url(url)
        if len(self.url) > self.opened.limits.url_bytes:
            raise Unacceptable(414, f"the URL is longer than {self.opened.limits.url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are ignored. Raises Unacceptable past the limits."""
        if not self.reading_head:
            return
        self.head_bytes += len(name) + len(value)
        limits = self.opened.limits
        if self.head_bytes > limits.head_bytes or len(self.headers) >= limits.headers:
            raise Unacceptable(431, f"at most {limits.headers} headers of {limits.head_bytes} bytes together")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request. Raises Unacceptable for WebSocket and CONNECT, or past the limit of pipelined requests."""
        if self.parser.should_upgrade():
            if upgrades.is_refused(self.parser.get_method(), self.headers):
                raise Unacceptable(400, "WebSocket and CONNECT are not supported: send plain HTTP/1.1")
            return  # the parser stops behind these headers, and `_parse` goes on
        super().on_headers_complete()
        self.reading_head = False
        if len(self.pipeline) > self.opened.limits.pipelined:
            raise Unacceptable(400, "too many pipelined requests")
        self.opened.silent.pop(self, None)
        self.opened.idle.pop(self, None)
        self.deadline = self.loop.time() + self.opened.limits.body_s

    def on_body(self, body: bytes) -> None:
        """Collect a part of the body. Once the response is sent, at most `body_bytes` more are read."""
        self.body_bytes += len(body)
        if self.cycle.response_complete and self.body_bytes > self.opened.limits.body_bytes:
            self._linger()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the deadline, or wait for the next request if the response is already sent."""
        if self.reading_head:  # of an upgrade
            return
        super().on_message_complete()
        self.reading, self.deadline = False, float("inf")
        if self.cycle.response_complete:
            self._await_next()

    # --- sending -----------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Wait for the next request unless it has arrived already; after an early refusal, for the rest of the body."""
        pipelined = bool(self.pipeline)
        super().on_response_complete()
        if pipelined:
            return
        if not self.reading:
            self._await_next()
        elif not self.transport.is_closing():
            self.deadline = min(self.deadline, self.loop.time() + self.opened.limits.rest_s)
            self.opened.idle[self] = None  # nothing is owed to it, so a new connection may take its place

    def _await_next(self) -> None:
        if not self.transport.is_closing():
            self.deadline = self.loop.time() + self.opened.limits.idle_s
            self.opened.idle[self] = None

    def pause_writing(self) -> None:
        """Record when the caller stopped reading."""
        self.stalled_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Record that the caller reads again."""
        self.stalled_at = None
        super().resume_writing()

    def refuse(self, status: int, error: str) -> None:
        """Send a refusal in JSON and close. If a response has begun already, close without one."""
        self.opened.log_refusal(f"{status}: {error}")
        cycle = self.cycle
        if (
            self.reading and not self.reading_head and cycle.response_complete
        ):  # the response was sent before the body arrived
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
        """End the sending side and discard what arrives: closing at once could lose the response on its way."""
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
