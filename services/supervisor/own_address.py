"""Addresses of this machine: writing them as URLs, requesting them.

Turns `serving.host` and `serving.port` into a URL and response bodies. The supervisor and `doctor` use it.
Requests bypass a proxy of the environment, which cannot reach this machine's loopback.
"""

import http.client
import ipaddress
import random
import socket
import urllib.request
from collections.abc import Mapping

from serving.process.start import bind_address

# Below those that systems give to outgoing connections, one of which could take a port before its server does.
PORTS = range(20_000, 32_000)
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def refused(host: str, port: int) -> str | None:
    """Return why no server can listen on an address now; None if one can."""
    try:
        address = bind_address(host, port)
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind((address, port))
    except OSError as error:
        return f"cannot bind {host}:{port} ({error.strerror})"
    return None


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
    """Return a TCP port of the loopback that is free now. Raises OSError if there is none."""
    for port in random.sample(PORTS, 200):
        if (why := refused("127.0.0.1", port)) is None:
            return port
    raise OSError(why)
