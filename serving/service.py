"""The BentoML service: life cycle around the HTTP routes of api.py.

`bentoml serve serving.service:RatchetService` starts it, N workers of one process each. It turns settings into the parts
that a worker needs. It deliberately holds no logic of its own.
"""

import gc
import logging
import os
from pathlib import Path

import bentoml
from starlette.applications import Starlette

from schemas.settings import Settings, load_settings
from serving import access
from serving.api import Api, Metrics
from serving.artifacts import ArtifactStore
from serving.batching import MicroBatcher
from serving.broker import Topics
from serving.live import LiveModel
from serving.outbox import Outbox
from serving.registry import Registry

EMBEDDED = "RATCHET_EMBEDDED_BROKER"


def settings_from_environment() -> Settings:
    """Settings of the file that RATCHET_CONFIG names, if any, and the environment."""
    config = os.environ.get("RATCHET_CONFIG")
    path = Path(config) if config else None
    text = path.read_text() if path else ""
    return load_settings(text, os.environ, root=path.parent if path else Path.cwd())


class Deferred:
    """An ASGI app that exists only once the worker has built it."""

    def __init__(self) -> None:
        self.app: Starlette | None = None

    async def __call__(self, scope: dict[str, object], receive: object, send: object) -> None:
        """Pass the call on."""
        assert self.app is not None
        await self.app(scope, receive, send)  # type: ignore[arg-type]  # ASGI's own types, spelled by Starlette


routes = Deferred()


# BentoML takes the number of workers from here alone; its access log would cost more than an answer.
@bentoml.service(
    name="ratchet",
    workers=settings_from_environment().serving.workers,
    traffic={"timeout": 30},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(routes, path="/")
class RatchetService:
    """One worker: a live model, a batcher, an outbox and the routes over them."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
        settings = settings_from_environment()
        serving = settings.serving
        keys = access.read_keys(settings.path(settings.access.keys))
        registry = Registry(settings.registry_url, settings.model.name)
        store = ArtifactStore(settings.location(settings.artifacts.url))
        cache = settings.path(settings.artifacts.cache)
        self.live = LiveModel(registry, store, cache, threads=serving.threads, poll_seconds=serving.poll_seconds)
        self.batcher = MicroBatcher(self.live.current, max_batch=serving.max_batch, max_queue=serving.max_queue)
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
        api = Api(settings, keys, self.live, self.batcher, self.outbox, metrics)
        self.live.start()
        self.outbox.start()
        routes.app = api.app()
        gc.collect()
        gc.freeze()  # what start-up made stays: the collector need not look at it at every full collection

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # bentoml has no types
    def stop(self) -> None:
        """Let what waits be published; what cannot be stays on disk."""
        self.live.close()
        self.batcher.close()
        self.outbox.close(10)

    def __is_ready__(self) -> bool:
        """Whether a champion is loaded: BentoML's /readyz asks."""
        return self.live.current() is not None
