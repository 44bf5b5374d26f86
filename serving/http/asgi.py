"""ASGI requests, refusals and event streams, and the cancellation of work whose caller hung up.

Turns ASGI messages into a request body, refusals into JSON, and named values into server-sent events (WHATWG HTML, section 9.2).
api.py and routes.py use it. It knows no routes and no models.
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
Result = TypeVar("Result")

STREAM: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
GZIP = 16 + zlib.MAX_WBITS  # zlib's code for a gzip header
MAX_GZIP_MEMBERS = 100


class Refused(Exception):
    """A request that is refused with a 4xx status or 503."""

    def __init__(self, status: int, error: str, *detail: tuple[str, str], **headers: str) -> None:
        super().__init__(error)
        self.status = status
        if status == 401:
            headers.setdefault("WWW_Authenticate", "Bearer")  # RFC 9110, 15.5.2
        self.body = orjson.dumps({"error": error, "detail": [{"field": f, "message": m} for f, m in detail]})
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class ClientGone(ConnectionError):
    """The caller hung up before the response was sent."""


@dataclass(frozen=True)
class Request:
    """One HTTP request; `body` reads its content."""

    method: str
    headers: dict[bytes, bytes]
    receive: Receive = field(repr=False)

    async def body(self, limit: int) -> bytes:
        """Return the decoded body. Raises Refused past `limit` bytes or for an unknown coding, or ClientGone."""
        coding = self.headers.get(b"content-encoding", b"").strip().lower()
        if coding not in (b"", b"identity", b"gzip", b"x-gzip"):
            reason = f"`Content-Encoding` must be gzip or absent, got {coding[:32].decode('latin-1')}"
            raise Refused(415, "unsupported coding", ("Content-Encoding", reason), Accept_Encoding="gzip, identity")
        content = await self._received(limit)
        return unpacked(content, limit) if coding.endswith(b"gzip") else content

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

    async def unless_gone(self, work: Awaitable[Result], after_s: float = 0.0) -> Result:
        """Return the result of `work`, or cancel it if the caller hangs up. The body must have been read.

        The connection is watched from `after_s` seconds on: work that ends sooner costs a timer and no task.

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
    """Return the content of a gzip body (RFC 1952). Raises Refused past `limit` bytes, or if the body is not complete gzip."""
    parts, size = [], 0
    for _ in range(MAX_GZIP_MEMBERS):
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
    raise Refused(400, "the body is not gzip", ("body", f"at most {MAX_GZIP_MEMBERS} members"))


def _too_large(limit: int) -> Refused:
    return Refused(413, "the body is too large", ("body", f"at most {limit} bytes"))


@dataclass(frozen=True)
class EventStream:
    """A response of server-sent events."""

    request: Request
    events: AsyncIterator[bytes]

    async def send(self, send: Send, headers: Headers) -> None:
        """Send the whole response. Raises ClientGone."""
        await self.request.unless_gone(self._send(send, headers))

    async def _send(self, send: Send, headers: Headers) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, *STREAM]})
        async for part in self.events:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def event(name: str, value: object) -> bytes:
    """Return one server-sent event; `value` is serialised to one line of JSON, bytes are taken as JSON."""
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
