"""ASGI for the routes: requests and refusals, server-sent events, and work that stops when its caller hangs up.

Turns a request's messages into a body, refusals into the bytes that a caller gets, named values into an event stream (WHATWG
HTML, section 9.2), and a connection that was left into a cancelled task. api.py answers with it. It deliberately knows no routes
and no models.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Found = TypeVar("Found")

STREAM: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
GZIP = 16 + zlib.MAX_WBITS  # zlib's way to ask for a gzip header
MOST_GZIP_MEMBERS = 100


class Refused(Exception):
    """A request that gets a 4xx or a 503."""

    def __init__(self, status: int, error: str, *detail: tuple[str, str], **headers: str) -> None:
        super().__init__(error)
        self.status = status
        if status == 401:
            headers.setdefault("WWW_Authenticate", "Bearer")  # RFC 9110, 15.5.2
        self.body = orjson.dumps({"error": error, "detail": [{"field": f, "message": m} for f, m in detail]})
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class ClientGone(ConnectionError):
    """The caller hung up before it was answered."""


@dataclass(frozen=True)
class Request:
    """One HTTP request; its body is read when it is asked for."""

    method: str
    headers: dict[bytes, bytes]
    receive: Receive = field(repr=False)

    async def body(self, limit: int) -> bytes:
        """Return all of it, unpacked. Raises Refused past `limit` bytes or for an unknown coding, or ClientGone."""
        coding = self.headers.get(b"content-encoding", b"").strip().lower()
        if coding not in (b"", b"identity", b"gzip", b"x-gzip"):
            reason = f"`Content-Encoding` must be gzip or absent, got {coding[:32].decode('latin-1')}"
            raise Refused(415, "unsupported coding", ("Content-Encoding", reason), Accept_Encoding="gzip, identity")
        found = await self._received(limit)
        return unpacked(found, limit) if coding.endswith(b"gzip") else found

    async def _received(self, limit: int) -> bytes:
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            raise _too_large(limit)
        chunks, size = [], 0
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientGone("the caller hung up")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return b"".join(chunks)

    async def unless_gone(self, work: Awaitable[Found], after_s: float = 0.0) -> Found:
        """Return what the work comes to; it is cancelled if the caller, whose body has been read, hangs up.

        Whether it did is looked at from `after_s` seconds on: work that ends sooner costs a timer, no task.

        Raises:
            ClientGone: the caller hung up.

        """
        working, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert working is not None
        watching: list[asyncio.Task[None]] = []
        gone = False

        async def watch() -> None:
            nonlocal gone
            await self._hung_up()
            gone = True
            working.cancel()

        timer = loop.call_later(after_s, lambda: watching.append(loop.create_task(watch())))
        try:
            return await work
        except asyncio.CancelledError:
            if gone and not working.uncancel():
                raise ClientGone("the caller hung up") from None
            raise
        finally:
            timer.cancel()
            for watcher in watching:
                watcher.cancel()

    async def _hung_up(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


def unpacked(body: bytes, limit: int) -> bytes:
    """Unpack gzip (RFC 1952) of one or more members. Raises Refused past `limit` bytes, or if it is not whole."""
    parts, size = [], 0
    for _ in range(MOST_GZIP_MEMBERS):
        member = zlib.decompressobj(GZIP)
        try:
            parts.append(member.decompress(body, limit - size + 1))
        except zlib.error as error:
            raise Refused(400, "the body is not gzip", ("body", str(error))) from error
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not member.eof:
            raise Refused(400, "the body is not gzip", ("body", "it ends too early"))
        body = member.unused_data
        if not body:
            return b"".join(parts)
    raise Refused(400, "the body is not gzip", ("body", f"more than {MOST_GZIP_MEMBERS} members"))


def _too_large(limit: int) -> Refused:
    return Refused(413, "the body is too large", ("body", f"more than {limit} bytes"))


@dataclass(frozen=True)
class EventStream:
    """A response whose parts come one by one, of a request that may be left."""

    request: Request
    events: AsyncIterator[bytes]

    async def send(self, send: Send, headers: Headers) -> None:
        """All of it. Raises ClientGone."""
        await self.request.unless_gone(self._send(send, headers))

    async def _send(self, send: Send, headers: Headers) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, *STREAM]})
        async for part in self.events:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def event(name: str, value: object) -> bytes:
    """One event; `value` becomes one line of JSON, unless it is JSON already."""
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
