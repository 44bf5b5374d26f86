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
from serving.http.counters import Counters
from serving.http.front import Front
from serving.http.guard import Guard
from serving.http.keyring import Keyring
from serving.http.listening import open_file_limit, protocol
from serving.http.metrics import Metrics
from serving.inference.batching import MicroBatcher
from serving.inference.generation_queue import GenerationQueue
from serving.live import LiveModel
from serving.messaging.connection import Broker
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import Topics
from serving.process.log_lines import LogFormat, formatter
from serving.process.private_files import keep_private
from serving.process.process_manager import without_ports
from serving.process.tracing import start_tracing, stop_tracing
from serving.registry.registry import Registry

EMBEDDED = "RATCHET_EMBEDDED_BROKER"


def settings_from_environment() -> Settings:
    """Return the settings of the file named by RATCHET_CONFIG, if any, and of the environment."""
    config = os.environ.get("RATCHET_CONFIG")
    path = Path(config) if config else None
    return load_settings(path.read_bytes() if path else "", os.environ, root=path.parent if path else Path.cwd())


def configure_logging(log_format: LogFormat) -> None:
    """Log Ratchet's records to standard error at INFO. BentoML's root logger, already set up, passes only warnings."""
    logger = logging.getLogger("ratchet")
    if not logger.handlers:
        stream = logging.StreamHandler()
        stream.setFormatter(formatter(log_format, "%(asctime)s %(process)d %(name)s %(message)s"))
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
        # BentoML starts uvicorn next and has no setting for the protocol class.
        auto.AutoHTTPProtocol = protocol(limits, workers=serving.workers)
        assets = Path(bentoml.__file__).parent / "_internal/server/static_content"
        return Front(routes, super().to_asgi(is_main), assets)


circus.Arbiter = without_ports(circus.Arbiter)  # BentoML instantiates it next, in the process that starts the workers


def _keep(settings: Settings) -> Keep:
    if os.environ.get(EMBEDDED) == "1":
        return Keep.UNTIL_STORED
    return Keep.UNTIL_CONFIRMED if settings.kafka.outbox else Keep.NOTHING


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
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the other cores belong to the other workers
        settings = settings_from_environment()
        observability = settings.observability
        configure_logging(observability.log_format)
        start_tracing(observability, service="serving", model=settings.model.name, share=observability.trace_share)
        serving = settings.serving
        keys = access.read_keys(settings.path(settings.access.keys))
        registry = Registry(settings.serving_registry_url, settings.model.name)
        store = ArtifactStore(settings.location(settings.artifacts.url))
        cache = settings.path(settings.artifacts.cache)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = serving.threads or max(1, cores // serving.workers)
        self.live = LiveModel(registry, store, cache, threads=threads, poll_seconds=serving.poll_seconds)
        metrics = Metrics(settings.model.name)
        self.batcher = MicroBatcher(
            self.live.current, max_batch=serving.max_batch, max_queue=serving.max_queue, observe=metrics.called
        )
        self.generation = GenerationQueue(self.live.current, max_queue=serving.max_queue)
        self.outbox = Outbox(
            settings.path(serving.outbox),
            broker=Broker.of(settings, "127.0.0.1:9092"),
            topics=Topics.of(settings.stream_name),
            keep=_keep(settings),
            stored_positions=registry.positions,
            max_bytes=serving.outbox_max_bytes,
            timeout_s=settings.kafka.publish_timeout_s,
            observe=metrics.outbox,
        )
        self.live.on_swap = metrics.swapped
        self.live.on_beat = lambda: metrics.notes(registry.ingestion())
        keyring = Keyring(
            keys,
            lambda: (registry.people.all_keys(), registry.signed_since()),
            cache / f"keys-{settings.model.name}.json",
            api_key=lambda: access.read_keys(settings.path(settings.access.keys)).api_key,
        )
        counters = Counters(settings.model.name, settings.access.counters, cache / "token-uses.db")
        self.guard = Guard(settings, keys.secret, keyring, counters)
        self.live.start()
        self.outbox.start()
        keyring.start()
        routes.api = Api(settings, keys, self.live, self.batcher, self.generation, self.outbox, metrics, self.guard)
        gc.collect()
        gc.freeze()  # objects from start-up stay: full collections need not traverse them

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # bentoml has no types
    def stop(self) -> None:
        """Finish waiting requests and publish waiting events; events that cannot be published stay on disk."""
        self.live.close()
        self.guard.close()
        self.batcher.close()
        self.generation.close()
        if routes.api is not None:
            routes.api.flush()
        self.outbox.close(10)
        stop_tracing()

    def __is_ready__(self) -> bool:
        """Return whether a champion is loaded, for BentoML's /readyz."""
        return self.live.current() is not None
