"""A Prometheus endpoint for a process without an HTTP server of its own: the consumer and the scheduler.

Turns a registry of metrics into /metrics on a port. Several projects and replicas may share a machine, so the next free port
is taken where the preferred one is in use.
"""

import logging

from prometheus_client import CollectorRegistry, start_http_server

log = logging.getLogger("ratchet.metrics")

LOOPBACK, EVERY_INTERFACE = "127.0.0.1", "0.0.0.0"  # noqa: S104  # the latter only where a setting asks for it
PORTS_TRIED = 10


def serve_metrics(
    registry: CollectorRegistry, port: int, *, host: str = LOOPBACK, tried: int = PORTS_TRIED
) -> int | None:
    """Serve /metrics in a thread on the first free of `tried` ports from `port` on; return it, None if all are in use."""
    for candidate in range(port, min(port + tried, 65_536)):
        try:
            start_http_server(candidate, addr=host, registry=registry)
        except OSError:
            continue
        log.info("metrics: http://%s:%d/metrics", host, candidate)
        return candidate
    log.warning("no metrics: ports %d to %d of %s are in use; set another, or 0 for none", port, port + tried - 1, host)
    return None
