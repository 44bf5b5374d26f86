"""The guard in front of every page: bounded bodies, same-origin requests, security headers.

Turns an ASGI app into one that refuses bodies beyond a limit and unsafe requests from other sites, and that sends the headers
which keep a browser from running or embedding anything else. It knows nobody: people.py does.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 1_000_000
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# Pages run our own files alone. The report of a round, a file of its own, carries its style inside: see REPORT_POLICY.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'self'; "
    "sandbox allow-same-origin"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class TooLong(ValueError):
    """The request's body exceeds MAX_BODY; app.py answers 413."""


class Guard:
    """Wraps an ASGI app. `hosts` are the origins besides the request's Host that count as the console's own."""

    def __init__(self, app: App, *, public_url: str | None, secure: bool) -> None:
        self._app = app
        self._public = urlsplit(public_url).netloc.lower() if public_url else None
        self._headers = dict(HEADERS)
        if secure:
            self._headers["strict-transport-security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] not in SAFE and not self._same_origin(headers):
            await self._refuse(send, 403, "this request came from another site: open the console and try again")
            return
        await self._app(scope, _bounded(receive, headers), self._with_headers(send, scope["path"]))

    def _same_origin(self, headers: dict[str, str]) -> bool:
        """Return whether a browser sent the request from one of the console's pages, or no browser sent it."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None and site not in ("same-origin", "none"):
            return False
        if origin is None:
            return True
        netloc = urlsplit(origin).netloc.lower()
        return bool(netloc) and netloc in (headers.get("host", "").lower(), self._public)

    def _with_headers(self, send: Send, path: str) -> Send:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = {**self._headers}
                if not path.startswith("/static/"):
                    added["cache-control"] = "no-store"
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in added.items() if name.encode() not in present),
                ]
            await send(message)

        return sending

    async def _refuse(self, send: Send, status: int, sentence: str) -> None:
        body = f'{{"error": "{sentence}", "detail": []}}'.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _bounded(receive: Receive, headers: dict[str, str]) -> Receive:
    """Return a `receive` that raises TooLong beyond MAX_BODY bytes."""
    if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", "0")) > MAX_BODY:

        async def refuse() -> MutableMapping[str, Any]:
            raise TooLong

        return refuse
    seen = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body") or b"")
        if seen > MAX_BODY:
            raise TooLong
        return message

    return receiving
