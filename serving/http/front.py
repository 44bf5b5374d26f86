"""The one door: which paths go to the routes, to the documentation and to BentoML, and nothing else passes.

Turns BentoML's app and the routes into the app that a worker serves. service.py builds it. It deliberately knows no settings.

BentoML keeps a metric series for each path that it sees. So only its four probes are passed on, by exact path, GET or HEAD,
without the caller's headers and query; whatever else arrives is answered, or refused, by the routes.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, HTMLResponse, Response

from serving.http.asgi import Message, Receive, Send

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

App = Callable[[Message, Receive, Send], Any]


class Front:
    """What a worker serves.

    Args:
        routes: answers our paths, and refuses all that nobody knows.
        bento: BentoML's app, for its probes and the life cycle.
        assets: folder of the Swagger UI that BentoML carries.
        clock: monotonic seconds.

    """

    def __init__(self, routes: App, bento: App, assets: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._routes = routes
        self._bento = bento
        self._metrics = Remembered(bento, METRICS_FRESH_S, clock)
        # By name, so that no path of a caller ever reaches the file system.
        self._docs: dict[str, Callable[[], Response]] = {
            "/docs": lambda: HTMLResponse(DOCS_PAGE.format(base="./")),
            "/docs/": lambda: HTMLResponse(DOCS_PAGE.format(base="../")),
            "/docs/swagger-ui.css": lambda: FileResponse(assets / "swagger-ui.css"),
            "/docs/swagger-ui-bundle.js": lambda: FileResponse(assets / "swagger-ui-bundle.js"),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one call, or pass it on."""
        if scope["type"] == "lifespan":
            await self._bento(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] not in ("GET", "HEAD"):
            await self._routes(scope, receive, send)
        elif scope["path"] in PROBES:
            app = self._metrics if scope["path"] == "/metrics" else self._bento
            await app({**scope, "headers": [], "query_string": b""}, receive, send)
        elif page := self._docs.get(scope["path"]):
            await page()({**scope, "headers": []}, receive, send)
        else:
            await self._routes(scope, receive, send)


class Remembered:
    """An app whose answer is given again for some seconds: metrics cost more to make than to ask for."""

    def __init__(self, app: App, fresh_s: float, clock: Callable[[], float]) -> None:
        self._app = app
        self._fresh_s = fresh_s
        self._clock = clock
        self._messages: list[Message] = []
        self._made_at = float("-inf")
        self._making = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer with what was made last, or make it anew."""
        async with self._making:
            if self._clock() - self._made_at > self._fresh_s:
                messages: list[Message] = []

                async def keep(message: Message) -> None:
                    messages.append(message)

                await self._app({**scope, "method": "GET"}, receive, keep)
                self._messages, self._made_at = messages, self._clock()
        for message in self._messages:
            await send(message)
