"""The process manager of the workers, without its control ports.

Turns BentoML's arbiter into one that listens on no port. service.py puts it in BentoML's place as it is loaded, so that it holds
however serving is started. Circus, which BentoML starts workers with, would listen on two ports of the loopback address for
commands, without a password, and one of the commands runs any program: any user of the machine could run programs as the service.
"""

from typing import Any


def without_ports(arbiter: type) -> type:
    """Return a subclass of Circus's `Arbiter` whose sockets can be reached from inside its process alone.

    A plug-in, as BentoML's `--reload` starts one, talks to the arbiter from a process of its own: it is refused.
    """

    class PortlessArbiter(arbiter):  # type: ignore[misc]  # circus has no types
        def __init__(self, watchers: Any, *_endpoints: str, **options: Any) -> None:
            if options.get("plugins"):
                raise ValueError("--reload needs control ports that any user of this machine can use: start without it")
            options |= {"endpoint": "inproc://control", "pubsub_endpoint": "inproc://events"}
            super().__init__(watchers, **options)

    return PortlessArbiter
