"""The BentoML service: life cycle around the HTTP routes of api.py.

`bentoml serve serving.service:RatchetService` starts it, N workers of one process each. It turns settings into the parts
that a worker needs. It deliberately holds no logic of its own.

Our routes are answered in front of BentoML's middleware (metrics of its own, tracing, a timer for each request that is
never cancelled), which would cost more than they do; its probes and /metrics stay its own.
"""

import asyncio
import gc
import logging
import os
import time
from pathlib import Path
from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http import auto

from schemas.settings import Settings, load_settings
from serving import access
from serving.api import PATHS, Api
from serving.artifacts import ArtifactStore
from serving.asgi import Message, Receive, Send
from serving.batching import MicroBatcher
from serving.broker import Topics
from serving.generation_queue import GenerationQueue
from serving.live import LiveModel
from serving.metrics import Metrics
from serving.outbox import Outbox
from serving.registry import Registry

EMBEDDED = "RATCHET_EMBEDDED_BROKER"
ACCEPT_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1e-4, 2e-3
PAUSED_SHARE, PAUSED_BURST_SECONDS = 0.02, 0.05
DOCS_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Ratchet inference API</title><link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div><script src="docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui"})</script></body>
</html>
"""


def settings_from_environment() -> Settings:
    """Settings of the file that RATCHET_CONFIG names, if any, and the environment."""
    config = os.environ.get("RATCHET_CONFIG")
    path = Path(config) if config else None
    text = path.read_text(encoding="utf-8") if path else ""
    return load_settings(text, os.environ, root=path.parent if path else Path.cwd())


def log_our_own() -> None:
    """Our lines go to standard error at INFO. BentoML has set up the root logger by now, which lets warnings alone through."""
    ours = logging.getLogger("ratchet")
    if not ours.handlers:
        lines = logging.StreamHandler()
        lines.setFormatter(logging.Formatter("%(asctime)s %(process)d %(name)s %(message)s"))
        ours.addHandler(lines)
        ours.setLevel(logging.INFO)
        ours.propagate = False


class Routes:
    """Our routes as an ASGI app that exists only once the worker has built it."""

    def __init__(self) -> None:
        self.api: Api | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the call on."""
        assert self.api is not None
        await self.api(scope, receive, send)


routes = Routes()


def docs() -> Starlette:
    """/docs: the API's document to read and try, on the Swagger UI that BentoML carries (its own page is hidden by ours)."""
    assets = StaticFiles(directory=Path(bentoml.__file__).parent / "_internal/server/static_content")
    return Starlette(routes=[Route("/docs", lambda _: HTMLResponse(DOCS_PAGE)), Mount("/docs", assets)])


class Patient(auto.AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # uvicorn chooses it as it starts
    """uvicorn's HTTP, with a pause after each new connection, the longer the more are open.

    Workers accept from one socket. Without the pause the one that wakes first takes a whole burst of connections, and keeps
    them for as long as they live, while the others have nothing to do. The pause stops the loop, though not the model: callers
    who open a connection for every request may spend PAUSED_SHARE of it that way, beyond a burst.
    """

    credit = PAUSED_BURST_SECONDS
    credited_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let another worker have the next one."""
        super().connection_made(transport)
        now = time.monotonic()
        credit = min(PAUSED_BURST_SECONDS, Patient.credit + PAUSED_SHARE * (now - Patient.credited_at))
        pause = min(LONGEST_PAUSE_SECONDS, ACCEPT_PAUSE_SECONDS * len(self.connections), credit)
        Patient.credit, Patient.credited_at = credit - pause, now
        time.sleep(pause)


class Fronted(bentoml.Service[Any]):  # type: ignore[misc]  # bentoml has no types
    """A service that asks our routes first, and BentoML's app for everything else."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """The app that a worker runs."""
        auto.AutoHTTPProtocol = Patient  # BentoML starts uvicorn next, and has no setting for it
        bento, page = super().to_asgi(is_main), docs()

        async def app(scope: Message, receive: Receive, send: Send) -> None:
            path = scope["path"] if scope["type"] == "http" else ""
            if path in PATHS:
                await routes(scope, receive, send)
            elif path == "/docs" or path.startswith("/docs/"):
                await page(scope, receive, send)
            else:
                await bento(scope, receive, send)

        return app


# BentoML takes the number of workers from here alone.
@bentoml.service(
    name="ratchet",
    service_class=Fronted,
    workers=settings_from_environment().serving.workers,
    traffic={"timeout": 30},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(routes, path="/")  # what neither knows is refused in our words
class RatchetService:
    """One worker: a live model, a batcher, an outbox and the routes over them."""

    def __init__(self) -> None:
        log_our_own()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the other cores are the other workers'
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
        self.writing = GenerationQueue(self.live.current, max_queue=serving.max_queue)
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
        routes.api = Api(settings, keys, self.live, self.batcher, self.writing, self.outbox, metrics)
        gc.collect()
        gc.freeze()  # what start-up made stays: the collector need not look at it at every full collection

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # bentoml has no types
    def stop(self) -> None:
        """Let what waits be published; what cannot be stays on disk."""
        self.live.close()
        self.batcher.close()
        self.writing.close()
        if routes.api is not None:
            routes.api.flush()
        self.outbox.close(10)

    def __is_ready__(self) -> bool:
        """Whether a champion is loaded: BentoML's /readyz asks."""
        return self.live.current() is not None
