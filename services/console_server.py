"""The console's process: pages and API on one address, and the webhooks.

Turns a settings file into a running server until SIGTERM. `ratchet up` starts it; it imports no training code.
"""

import contextlib
import logging
import os
import sys
import threading
from pathlib import Path

import click
import uvicorn
from starlette.applications import Starlette

from schemas.settings import SettingsError, load_settings
from services.console.app import build
from services.console.notifications import Notifier
from services.console.people import operator_key
from services.console.project import Project
from services.projects import settings_file
from serving.http.access import read_keys
from serving.keys_file import KeysMissing
from serving.process.log_lines import log_to
from serving.process.private_files import keep_private
from serving.process.start import bind_address
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.console")
GRACE_S = 3  # for open streams
WARM_UP_S = 5.0  # after the other parts of `ratchet up` have started


class Server(uvicorn.Server):
    """Serves with uvicorn, and prints the line that `ratchet up` waits for once it listens."""

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Start to listen on the address."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            print("ready", flush=True)


def listening(project: Project, app: Starlette) -> uvicorn.Config:
    """Return how the console listens, by its settings."""
    console = project.settings.console
    return uvicorn.Config(
        app,
        host=bind_address(console.host, console.port),
        port=console.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        # Only a proxy that the settings name may say who calls; anybody could write the header otherwise.
        proxy_headers=console.public_url is not None,
        forwarded_allow_ips="127.0.0.1",
        limit_concurrency=200,
    )


def _run(config: Path) -> None:
    settings = load_settings(config.read_bytes(), os.environ, root=config.absolute().parent)
    registry = Registry(settings.registry_url, settings.model.name)
    registry.migrate()
    keys = settings.path(settings.access.keys)
    project = Project(settings, config.absolute(), registry, read_keys(keys), operator_key(keys))
    stop = threading.Event()
    notifier = Notifier(project)
    if notifier.is_on:
        threading.Thread(target=notifier.run, args=(stop,), daemon=True, name="notifier").start()
    log.info("console at %s", project.console_url())
    threading.Thread(target=_warm_up, args=(project, stop), daemon=True, name="warm-up").start()
    try:
        Server(listening(project, build(project))).run()
    finally:
        stop.set()
        registry.close()


def _warm_up(project: Project, stop: threading.Event) -> None:
    """Open the event log soon after the start, so that nobody's first page waits for its libraries. Never raises."""
    if not stop.wait(WARM_UP_S):
        with contextlib.suppress(Exception):  # the page says what is wrong
            project.events.version()


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default="ratchet.toml", help="settings file")
def main(config: Path) -> None:
    """Run the console until SIGTERM."""
    keep_private()
    log_to(sys.stdout)
    for name in ("httpx", "uvicorn.error"):  # a line for each request, and for each start
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        _run(settings_file(config))
    except (SettingsError, FileNotFoundError, KeysMissing) as error:
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main()
