"""Live events: a stream that tells an open page that what it shows has changed.

Turns the state of registry and event log, looked at every two seconds, into server-sent events (HTML standard, 9.2). An event
carries no data: the page asks for its changing part again, through the same checks as any request.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

LOOK_S = 2.0
QUIET_S = 20.0  # a comment keeps proxies from closing a silent stream
MOST_STREAMS = 100

log = logging.getLogger("ratchet.console")


class Streams:
    """The open streams of one console. `look` returns a text that differs whenever a page would."""

    def __init__(self, look: Callable[[], str], every_s: float = LOOK_S) -> None:
        self._look = look
        self._every_s = every_s
        self._seen = ("", 0.0)
        self._lock = asyncio.Lock()
        self._open = 0
        self.stopping = False

    async def current(self) -> str:
        """Return the state, looked at once in `every_s` for all streams together."""
        async with self._lock:
            state, at = self._seen
            if time.monotonic() - at >= self._every_s:
                try:
                    state = await run_in_threadpool(self._look)
                except Exception as error:  # the page itself says what cannot be read
                    log.warning("the state cannot be read: %s", error)
                self._seen = (state, time.monotonic())
            return state

    def response(self, request: Request) -> StreamingResponse:
        """Return the stream for one page."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        if self._open >= MOST_STREAMS:
            return StreamingResponse(iter(()), 503, {**headers, "retry-after": "30"})
        return StreamingResponse(self._events(request), media_type="text/event-stream", headers=headers)

    async def _events(self, request: Request) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            seen, spoke = await self.current(), time.monotonic()
            yield b"retry: 3000\n\n"
            while not self.stopping and not await request.is_disconnected():
                await asyncio.sleep(self._every_s / 2)
                now = await self.current()
                if now != seen:
                    seen, spoke = now, time.monotonic()
                    yield b"event: changed\ndata: 1\n\n"
                elif time.monotonic() - spoke > QUIET_S:
                    spoke = time.monotonic()
                    yield b": quiet\n\n"
        finally:
            self._open -= 1
