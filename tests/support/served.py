"""A serving process over a tiny real model, within seconds and without a round.

Turns a folder into a project whose champion is a tiny version, and serves it with BentoML in a process of its own. The tests of
the front and `make attack` call it. It deliberately starts no consumer and no scheduler.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from schemas.settings import load_settings
from serving.artifacts import ArtifactStore
from serving.http.access import Keys, write_keys
from serving.messaging.connection import Broker
from serving.messaging.publisher import Topics, embedded_broker_command, ensure_topics
from serving.registry.registry import Registry
from tests.bench.serve_load import module, server
from tests.support.fakes import TOPICS, free_port, tiny_base_model, wait_until
from tests.support.versions import promote, tiny_version


@dataclass(frozen=True)
class Served:
    """A running server: its address and port, the project's keys, and its process."""

    url: str
    port: int
    keys: Keys
    process: psutil.Process
    log: Path

    @property
    def header(self) -> str:
        """The Authorization header."""
        return f"Bearer {self.keys.api_key}"


def make_project(root: Path, version: Path | None = None, **serving: object) -> Path:
    """Write ratchet.toml, keys and a registry whose champion is `version`, or a tiny one; return the path of ratchet.toml."""
    root.mkdir(parents=True, exist_ok=True)
    config = root / "ratchet.toml"
    lines = [
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in serving.items()
    ]
    config.write_text("\n".join(["[model]", 'name = "m"', "[serving]", *lines, ""]), encoding="utf-8")
    settings = load_settings(config.read_text(encoding="utf-8"), {}, root=root)
    write_keys(root / "keys.env")
    registry = Registry(settings.registry_url, "m")
    registry.migrate()
    registry.set_labels(TOPICS)
    store = ArtifactStore(settings.location(settings.artifacts.url))
    promote(registry, store, version or tiny_version(root / "v", tiny_base_model(root / "base"), "v", list(TOPICS)))
    registry.close()
    return config


@contextlib.contextmanager
def served(config: Path, broker: str | None = None, *, embedded: bool = True) -> Iterator[Served]:
    """Serve a project until the block ends; without a broker, events wait in the outbox."""
    port, root = free_port(), config.parent
    environment = {
        "RATCHET_CONFIG": str(config),
        "RATCHET_KAFKA__BOOTSTRAP_SERVERS": broker or f"127.0.0.1:{free_port()}",
        "RATCHET_EMBEDDED_BROKER": "1" if embedded else "",
        "BENTOML_HOME": str(root / "state/bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [*module("bentoml"), "serve", "serving.service:RatchetService", "--port", str(port)]
    url, log = f"http://127.0.0.1:{port}", root / "serving.log"
    with server(command, environment, log, f"{url}/readyz") as process:
        yield Served(url, port, write_keys(root / "keys.env"), process, log)


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    """An embedded broker that knows the project's topics: its address."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(embedded_broker_command(port), stdout=log, stderr=subprocess.STDOUT)

    def answers() -> bool:
        try:
            ensure_topics(Broker(address), Topics.of("m").names(), partitions=2, replication_factor=1, timeout_s=5)
        except ConnectionError:
            return False
        return True

    try:
        wait_until(answers)
        yield address
    finally:
        process.kill()
        process.wait(10)
