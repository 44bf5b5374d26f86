"""Requests that ask for another protocol: which are refused, and how the others read without the upgrade.

Turns a parsed head into one that asks for nothing. connections.py calls it. A server may ignore an upgrade (RFC 9110, section
7.8): a client that offers HTTP/2, as Java's does by default, gets its answer by HTTP/1.1.
"""

from collections.abc import Sequence
from typing import Protocol

FIELDS = (b"upgrade", b"http2-settings")
Headers = Sequence[tuple[bytes, bytes]]


class Parsed(Protocol):
    """A parser that has read a request's head."""

    def get_method(self) -> bytes:
        """Return the method."""

    def get_http_version(self) -> str:
        """Return the version, such as 1.1."""


def is_refused(method: bytes, headers: Headers) -> bool:
    """Return whether a caller could not go on by plain HTTP/1.1: WebSocket and CONNECT. Names of headers are in lower case."""
    offered = b",".join(value.lower() for name, value in headers if name == b"upgrade")
    return method == b"CONNECT" or b"websocket" in offered


def without(parser: Parsed, url: bytes, headers: Headers) -> bytes:
    """Return the bytes of a parsed head without the header fields that ask for an upgrade."""
    lines = [b"%s %s HTTP/%s" % (parser.get_method(), url, parser.get_http_version().encode())]
    for name, value in headers:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            lines += [b"connection: " + token for token in tokens if token.lower() not in FIELDS]
        elif name not in FIELDS:
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])
