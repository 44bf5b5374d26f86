"""Cross-origin resource sharing (WHATWG Fetch, "CORS protocol"): which web pages may read responses.

Turns a request's Origin into response headers. api.py passes it to the router. Credentials mode stays off: keys and feedback
tokens travel in headers that a page sets itself.
"""

from collections.abc import Collection, Mapping

from serving.http.asgi import Headers

ALLOWED_HEADERS = b"authorization, content-type, content-encoding, x-feedback-token"
EXPOSED_HEADERS = b"x-ratchet-worker, retry-after, www-authenticate"
REMEMBERED_S = b"600"


class Cors:
    """CORS policy of one project; without origins it adds no header."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origin.encode("latin-1", "ignore") for origin in origins)
        self._any = b"*" in self._origins

    def headers(self, request: Mapping[bytes, bytes]) -> Headers:
        """Return the CORS headers of the response to a request with these headers."""
        if not self._origins:
            return []
        vary: Headers = [] if self._any else [(b"vary", b"Origin")]
        origin = request.get(b"origin")
        if origin is None or not self.allows(origin):
            return vary
        allowed = b"*" if self._any else origin
        return [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", EXPOSED_HEADERS), *vary]

    def allows(self, origin: bytes) -> bool:
        """Return whether pages of this origin may call."""
        return self._any or origin.lower() in self._origins

    def preflight(self, request: Mapping[bytes, bytes], methods: bytes) -> Headers:
        """Return the further headers of a preflight response; none if it is no preflight or its origin may not call."""
        origin = request.get(b"origin")
        if origin is None or b"access-control-request-method" not in request or not self.allows(origin):
            return []
        return [
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", ALLOWED_HEADERS),
            (b"access-control-max-age", REMEMBERED_S),
        ]
