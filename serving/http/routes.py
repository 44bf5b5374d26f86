"""Which path and method is answered by what: the ASGI side of the routes.

Turns one ASGI call into a call of a route, and what the route returns or raises into a response. api.py holds the routes.
It deliberately knows no models and no keys.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

import orjson

from serving.http.asgi import ClientGone, EventStream, Headers, Message, Receive, Refused, Request, Send
from serving.http.cors import Cors

log = logging.getLogger("ratchet.api")

Answered = tuple[int, bytes] | EventStream
Route = Callable[[Request], Awaitable[Answered]]

JSON = (b"content-type", b"application/json")


class Router:
    """Routes by path, each with its one method; GET answers HEAD too, and every path answers OPTIONS.

    Args:
        routes: method and route of each path; one slash more at the end of a path is the same path.
        headers: of every answer.
        cors: what browsers may read.

    """

    def __init__(self, routes: Mapping[str, tuple[str, Route]], *, headers: Headers, cors: Cors) -> None:
        self._routes = routes
        self._headers = headers
        self._cors = cors

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; without BentoML, also ASGI's life cycle."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        request = Request(scope.get("method", ""), dict(scope["headers"]), receive)
        headers = [*self._headers, *self._cors.headers(request.headers)]
        try:
            answer = await self._answer(scope, request, headers)
            if isinstance(answer, EventStream):
                await answer.send(send, headers)
                return
            status, body = answer
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

    async def _answer(self, scope: Message, request: Request, headers: Headers) -> Answered:
        path = scope["path"]
        found = self._routes.get(path) or self._routes.get(path.removesuffix("/"))
        if scope["type"] != "http" or found is None:
            raise Refused(404, "Not Found")
        method, route = found
        if request.method == method or (request.method == "HEAD" and method == "GET"):
            return await route(request)
        methods = f"{method}, HEAD, OPTIONS" if method == "GET" else f"{method}, OPTIONS"
        if request.method != "OPTIONS":
            raise Refused(405, "Method Not Allowed", Allow=methods)
        headers += [(b"allow", methods.encode()), *self._cors.preflight(request.headers, methods.encode())]
        return 204, b""
