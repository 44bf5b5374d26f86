"""The router: call the route of a path and method, and send its response over ASGI.

Turns one ASGI call into a call of a route, and the route's result or exception into a response. api.py defines the routes. It
knows no models and no keys.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson
from opentelemetry.trace import SpanKind

from serving.http.asgi import ClientGone, EventStream, Headers, Message, Receive, Refused, Request, Send
from serving.http.cors import Cors
from serving.http.pacing import Pacing, refusal_cost
from serving.process import tracing

log = logging.getLogger("ratchet.api")

Response = tuple[int, bytes] | EventStream
Route = Callable[[Request], Awaitable[Response]]

JSON = (b"content-type", b"application/json")


class Router:
    """Routes by path, each with one method. A GET route also answers HEAD, and every path answers OPTIONS.

    Args:
        routes: method and route of each path; a trailing slash in a request's path is ignored.
        headers: sent with every response.
        cors: the project's CORS policy.
        max_body_bytes: the longest body that a connection reads.
        observe: called after each request with route, status (0 if the caller hung up) and seconds.

    """

    def __init__(
        self,
        routes: Mapping[str, tuple[str, Route]],
        *,
        headers: Headers,
        cors: Cors,
        max_body_bytes: int,
        observe: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self._routes = routes
        self._headers = headers
        self._cors = cors
        self._max_body_bytes = max_body_bytes
        self._observe = observe
        self._pacing = Pacing()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or ASGI's lifespan messages when the app runs without BentoML."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        started = time.perf_counter()
        path = scope["path"]
        route = path if path in self._routes else path.removesuffix("/")
        route = route if route in self._routes else "other"
        if tracing.enabled():
            status = await self._traced(route, scope, receive, send)
        else:
            status = await self._answer(scope, receive, send)
        if self._observe is not None:
            self._observe(route, status, time.perf_counter() - started)

    async def _traced(self, route: str, scope: Message, receive: Receive, send: Send) -> int:
        """Answer within a span that continues the caller's trace, if it sent one."""
        given = next((value for name, value in scope["headers"] if name == b"traceparent"), b"").decode("latin-1")
        known = {"http.request.method": scope["method"] if route != "other" else "_OTHER", "http.route": route}
        with tracing.span(f"{scope['method']} {route}", known, parent=given, kind=SpanKind.SERVER) as span:
            status = await self._answer(scope, receive, send)
            span.set_attribute("http.response.status_code", status)
            return status

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> int:
        """Send the response and return its status, 0 if the caller hung up."""
        request = Request(scope.get("method", ""), dict(scope["headers"]), receive)
        headers = [*self._headers, *self._cors.headers(request.headers)]
        try:
            response = await self._respond(scope, request, headers)
            if isinstance(response, EventStream):
                await response.send(send, headers)
                return 200
            status, body = response
        except Refused as refused:
            status, body = refused.status, refused.body
            headers += [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
        except ClientGone:
            return 0
        except Exception:
            log.exception("%s failed", scope["path"])
            status, body = 500, orjson.dumps({"error": "internal error", "detail": []})
        if 400 <= status < 500:
            await self._pacing.wait(refusal_cost(request.headers, self._max_body_bytes))
        elif request.method in ("GET", "HEAD"):
            await self._pacing.wait()
        if status != 204:
            headers += [JSON, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})
        return status

    async def _respond(self, scope: Message, request: Request, headers: Headers) -> Response:
        path = scope["path"]
        entry = self._routes.get(path) or self._routes.get(path.removesuffix("/"))
        if scope["type"] != "http" or entry is None:
            raise Refused(404, "Not Found")
        method, route = entry
        if request.method == method or (request.method == "HEAD" and method == "GET"):
            return await route(request)
        methods = f"{method}, HEAD, OPTIONS" if method == "GET" else f"{method}, OPTIONS"
        if request.method != "OPTIONS":
            raise Refused(405, "Method Not Allowed", Allow=methods)
        headers += [(b"allow", methods.encode()), *self._cors.preflight(request.headers, methods.encode())]
        return 204, b""


def constant(value: object) -> Route:
    """Return a route that always answers this value as JSON."""
    body = orjson.dumps(value)

    async def answer(_request: Request) -> Response:
        return 200, body

    return answer


async def _answered_in_front(_request: Request) -> Response:
    raise Refused(404, "Not Found")


# Paths whose GET and HEAD front.py answers; here, so that other methods get 405.
FRONT_ROUTES: Mapping[str, tuple[str, Route]] = dict.fromkeys(
    ("/livez", "/readyz", "/healthz", "/metrics", "/docs", "/feedback.js"), ("GET", _answered_in_front)
)
