"""The router: call the route of a path and method, and send its response over ASGI.

Turns one ASGI call into a call of a route, and the route's result or exception into a response. api.py defines the routes. It
knows no models and no keys.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

import orjson

from serving.http.asgi import ClientGone, EventStream, Headers, Message, Receive, Refused, Request, Send
from serving.http.cors import Cors

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

    """

    def __init__(self, routes: Mapping[str, tuple[str, Route]], *, headers: Headers, cors: Cors) -> None:
        self._routes = routes
        self._headers = headers
        self._cors = cors

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or ASGI's lifespan messages when the app runs without BentoML."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        request = Request(scope.get("method", ""), dict(scope["headers"]), receive)
        headers = [*self._headers, *self._cors.headers(request.headers)]
        try:
            response = await self._respond(scope, request, headers)
            if isinstance(response, EventStream):
                await response.send(send, headers)
                return
            status, body = response
        except Refused as refused:
            status, body = refused.status, refused.body
            headers += [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
        except ClientGone:
            return
        except Exception:
            log.exception("%s failed", scope["path"])
            status, body = 500, orjson.dumps({"error": "internal error", "detail": []})
        if status != 204:
            headers += [JSON, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})

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
