"""Addresses of this machine: binding them, writing them as URLs, requesting them.

Turns `serving.host` and `serving.port` into an address to bind, a URL and response bodies. The supervisor and `doctor` use it.
Requests bypass a proxy of the environment, which cannot reach this machine's loopback.
"""

import http.client
import ipaddress
import socket
import urllib.request
from collections.abc import Mapping

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def bind_address(host: str, port: int) -> str:
    """Return the numeric address of a host name, IPv4 before IPv6. Raises OSError if it has none."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(min(entries, key=lambda entry: entry[0] is not socket.AF_INET)[4][0])


def url_of(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server that listens on `host`."""
    host = _ANY.get(host, host)
    try:
        bracketed = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        bracketed = host
    return f"http://{bracketed}:{port}"


def fetch(url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the body of a 200 response. Raises urllib.error.HTTPError for other statuses, OSError without a response."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - our own address
    with _DIRECT.open(request, timeout=timeout_s) as answer:
        body: bytes = answer.read()
    return body


def answers(url: str) -> bool:
    """Return whether `url` responds with 200 within 2 seconds."""
    try:
        fetch(url, timeout_s=2)
    except (OSError, http.client.HTTPException):
        return False
    return True


def free_port() -> int:
    """Return a TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
