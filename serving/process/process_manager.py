"""The process manager of the workers, without its control ports.

Turns Circus's arbiter, which starts BentoML's workers, into one that listens on no port. service.py replaces the class when it is
imported, so the change holds however serving is started.

Circus would accept commands on two loopback ports without a password. One command runs any program, so every local user could run
programs as the service.
"""

from typing import Any


def without_ports(arbiter: type) -> type:
    """Return a subclass of Circus's `Arbiter` whose sockets can be reached only from inside its process.

    Plug-ins, which BentoML's `--reload` starts, run in another process; the subclass raises ValueError for them.
    """

    class PortlessArbiter(arbiter):  # type: ignore[misc]  # circus has no types
        def __init__(self, watchers: Any, *_endpoints: str, **options: Any) -> None:
            if options.get("plugins"):
                raise ValueError("`--reload` needs control ports that every local user can reach: start without it")
            options |= {"endpoint": "inproc://control", "pubsub_endpoint": "inproc://events"}
            super().__init__(watchers, **options)

    return PortlessArbiter
