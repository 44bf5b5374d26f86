"""The BentoML service: builds the parts of a worker from the settings, and starts and stops them.

`bentoml serve serving.service:RatchetService` starts it with `serving.workers` processes. The routes are in api.py.

front.py answers the routes before BentoML's middleware (metrics, tracing, a timer for each request), which would cost more than
the routes do. BentoML answers its probes and /metrics.
"""

import gc
import logging
import os
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.utils import circus
from uvicorn.protocols.http import auto

from schemas.settings import Settings, load_settings
from serving.api import Api
from serving.artifacts import ArtifactStore
from serving.http import access
from serving.http.asgi import Message, Receive, Send
from serving.http.connections import Limits
from serving.http.front import Front
from serving.http.listening import open_file_limit, protocol
from serving.http.metrics import Metrics
from serving.inference.batching import MicroBatcher
from serving.inference.generation_queue import GenerationQueue
from serving.live import LiveModel
from serving.messaging.outbox import Outbox
from serving.messaging.publisher import Topics
from serving.process.log_lines import OneLine
from serving.process.private_files import keep_private
from serving.process.process_manager import without_ports
from serving.registry.registry import Registry

EMBEDDED = "RATCHET_EMBEDDED_BROKER"


def settings_from_environment() -> Settings:
    """Return the settings of the file named by RATCHET_CONFIG, if any, and of the environment."""
    config = os.environ.get("RATCHET_CONFIG")
    path = Path(config) if config else None
    return load_settings(path.read_bytes() if path else "", os.environ, root=path.parent if path else Path.cwd())


def configure_logging() -> None:
    """Log Ratchet's records to standard error at INFO. BentoML's root logger, already set up, passes only warnings."""
    logger = logging.getLogger("ratchet")
    if not logger.handlers:
        stream = logging.StreamHandler()
        stream.setFormatter(OneLine("%(asctime)s %(process)d %(name)s %(message)s"))
        logger.addHandler(stream)
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Routes:
    """The routes as an ASGI app, which the worker sets when it has built them."""

    def __init__(self) -> None:
        self.api: Api | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the call on to the routes."""
        assert self.api is not None
        await self.api(scope, receive, send)


routes = Routes()


class Fronted(bentoml.Service[Any]):  # type: ignore[misc]  # bentoml has no types
    """A BentoML service behind `Front`, which decides what reaches BentoML."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """Return the ASGI app that a worker runs."""
        serving = settings_from_environment().serving
        limits = Limits(
            connections=open_file_limit(serving.max_connections),
            body_bytes=serving.max_body_bytes,
            idle_s=serving.keep_alive_s,
        )
        auto.AutoHTTPProtocol = protocol(
            limits
        )  # BentoML starts uvicorn next and has no setting for the protocol class
        assets = Path(bentoml.__file__).parent / "_internal/server/static_content"
        return Front(routes, super().to_asgi(is_main), assets)


circus.Arbiter = without_ports(circus.Arbiter)  # BentoML instantiates it next, in the process that starts the workers


# BentoML takes the number of workers only from this decorator.
@bentoml.service(
    name="ratchet",
    service_class=Fronted,
    workers=settings_from_environment().serving.workers,
    traffic={"timeout": 30},
    logging={"access": {"enabled": False}},
)
class RatchetService:
    """One worker: a live model, its queues, an outbox and the routes over them."""

    def __init__(self) -> None:
        keep_private()
        configure_logging()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the other cores belong to the other workers
        settings = settings_from_environment()
        serving = settings.serving
        keys = access.read_keys(settings.path(settings.access.keys))
        registry = Registry(settings.registry_url, settings.model.name)
        store = ArtifactStore(settings.location(settings.artifacts.url))
        cache = settings.path(settings.artifacts.cache)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = serving.threads or max(1, cores // serving.workers)
        self.live = LiveModel(registry, store, cache, threads=threads, poll_seconds=serving.poll_seconds)
        self.batcher = MicroBatcher(self.live.current, max_batch=serving.max_batch, max_queue=serving.max_queue)
        self.generation = GenerationQueue(self.live.current, max_queue=serving.max_queue)
        metrics = Metrics(settings.model.name)
        self.outbox = Outbox(
            settings.path(serving.outbox),
            bootstrap=settings.kafka.bootstrap_servers or "127.0.0.1:9092",
            topics=Topics.of(settings.model.name),
            write_ahead=os.environ.get(EMBEDDED) == "1",
            stored_positions=registry.positions,
            max_bytes=serving.outbox_max_bytes,
            timeout_s=settings.kafka.publish_timeout_s,
            observe=metrics.outbox,
        )
        self.live.start()
        self.outbox.start()
        routes.api = Api(settings, keys, self.live, self.batcher, self.generation, self.outbox, metrics)
        gc.collect()
        gc.freeze()  # objects from start-up stay: full collections need not traverse them

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # bentoml has no types
    def stop(self) -> None:
        """Finish waiting requests and publish waiting events; events that cannot be published stay on disk."""
        self.live.close()
        self.batcher.close()
        self.generation.close()
        if routes.api is not None:
            routes.api.flush()
        self.outbox.close(10)

    def __is_ready__(self) -> bool:
        """Return whether a champion is loaded, for BentoML's /readyz."""
        return self.live.current() is not None
