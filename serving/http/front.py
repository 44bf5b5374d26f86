"""The front of a worker: dispatch each path to the routes, the public pages or BentoML.

Turns BentoML's app and the routes into the app that a worker serves. service.py builds it.

BentoML keeps a metric series for each path that it sees. Therefore it gets only its four probes: by exact path, with GET or HEAD,
without the caller's headers and query. The routes answer, or refuse, all other requests.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, HTMLResponse, Response

from serving.http.asgi import Message, Receive, Send
from serving.http.pacing import Pacing

PROBES = frozenset(("/livez", "/readyz", "/healthz", "/metrics"))
METRICS_FRESH_S = 1.0
DOCS_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Ratchet inference API</title><base href="{base}">
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div><script src="docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: new URL("openapi.json", document.baseURI).href, dom_id: "#swagger-ui"}})</script></body>
</html>
"""

# Public, so that pages of every origin may load it, also as a module or with an integrity hash.
WIDGET = Path(__file__).with_name("feedback.js")
WIDGET_HEADERS = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "cache-control": "public, max-age=300",
    "x-content-type-options": "nosniff",
}

App = Callable[[Message, Receive, Send], Any]


class Front:
    """The ASGI app that a worker serves.

    Args:
        routes: answers the API's paths and refuses unknown ones.
        bento: BentoML's app, for its probes and ASGI's lifespan messages.
        assets: folder of the Swagger UI in BentoML's package.
        clock: monotonic seconds.

    """

    def __init__(self, routes: App, bento: App, assets: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._routes = routes
        self._bento = bento
        self._metrics = Cached(bento, METRICS_FRESH_S, clock)
        self._pacing = Pacing()
        # A fixed table: no path from a request reaches the file system.
        self._pages: dict[str, Callable[[], Response]] = {
            "/docs": lambda: HTMLResponse(DOCS_PAGE.format(base="./")),
            "/docs/": lambda: HTMLResponse(DOCS_PAGE.format(base="../")),
            "/docs/swagger-ui.css": lambda: FileResponse(assets / "swagger-ui.css"),
            "/docs/swagger-ui-bundle.js": lambda: FileResponse(assets / "swagger-ui-bundle.js"),
            "/feedback.js": lambda: FileResponse(WIDGET, media_type="text/javascript", headers=WIDGET_HEADERS),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one call, or pass it to the app of its path."""
        if scope["type"] == "lifespan":
            await self._bento(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] not in ("GET", "HEAD"):
            await self._routes(scope, receive, send)
        elif scope["path"] in PROBES:
            app = self._metrics if scope["path"] == "/metrics" else self._bento
            await app({**scope, "headers": [], "query_string": b""}, receive, send)
        elif page := self._pages.get(scope["path"]):
            await self._pacing.wait()
            await page()({**scope, "headers": []}, receive, send)
        else:
            await self._routes(scope, receive, send)


class Cached:
    """An app whose response is cached for `fresh_s` seconds, because metrics are expensive to collect."""

    def __init__(self, app: App, fresh_s: float, clock: Callable[[], float]) -> None:
        self._app = app
        self._fresh_s = fresh_s
        self._clock = clock
        self._messages: list[Message] = []
        self._made_at = float("-inf")
        self._making = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Send the cached response, after renewing it if it is too old."""
        async with self._making:
            if self._clock() - self._made_at > self._fresh_s:
                messages: list[Message] = []

                async def keep(message: Message) -> None:
                    messages.append(message)

                await self._app({**scope, "method": "GET"}, receive, keep)
                self._messages, self._made_at = messages, self._clock()
        for message in self._messages:
            await send(message)
