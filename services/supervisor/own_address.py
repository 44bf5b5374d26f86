"""Our own HTTP addresses: how they are written, bound and asked.

Turns `serving.host` and `serving.port` into an address to bind, a URL to show, and answers. The supervisor and `doctor` use it.
A proxy in the environment is never asked for them: it does not know this machine's loopback.
"""

import ipaddress
import socket
import urllib.request
from collections.abc import Mapping

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def bind_address(host: str, port: int) -> str:
    """Return the numeric address that a host's name stands for, IPv4 before IPv6. Raises OSError if it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda entry: entry[0] is not socket.AF_INET)[4][0])


def url_of(host: str, port: int) -> str:
    """Return the URL by which this machine reaches a server that listens on `host`."""
    host = _ANY.get(host, host)
    try:
        bracketed = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        bracketed = host
    return f"http://{bracketed}:{port}"


def fetch(url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the body of a 200. Raises urllib.error.HTTPError for other answers, OSError where there is none."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - our own address
    with _DIRECT.open(request, timeout=timeout_s) as answer:
        body: bytes = answer.read()
    return body
