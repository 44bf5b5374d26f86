"""`ratchet migrate`, `bootstrap` and `start`: what a server's init jobs and service units run, one step or process each.

Turns arguments into registry tables and topics, a first champion, or one process of the project. `ratchet up` does all of it on
one machine; these commands never start a broker.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli.project import config_option, opened

if TYPE_CHECKING:
    from schemas.settings import Settings

MODULES = {
    "consumer": "services.feedback_consumer",
    "scheduler": "services.training_scheduler",
    "console": "services.console_server",
}
CHECKED = {
    "serving": ("keys", "kafka"),
    "consumer": ("feature store", "kafka"),
    "scheduler": ("feature store", "triggers", "policy", "data", "base model"),
    "console": ("keys", "feature store"),
}


@click.command()
@config_option
def migrate(config: Path) -> None:
    """Make or update the registry's tables and the topics. Safe to repeat; run it before each new release."""
    from services.checks.registry import migrate_checked
    from services.checks.topics import refusal
    from serving.messaging.connection import Broker
    from serving.messaging.project_topics import make_topics
    from serving.messaging.publisher import Topics

    with opened(config) as (settings, registry):
        _refuse_embedded(settings)
        migrate_checked(settings, registry)
        click.echo("registry: its tables are up to date")
        broker, topics = Broker.of(settings), Topics.of(settings.stream_name)
        make_topics(settings, broker)
        if reason := refusal(settings, registry, broker, topics):
            raise click.ClickException(reason)
        click.echo(f"kafka: {', '.join(topics.names())} are there")


@click.command()
@config_option
@click.pass_context
def bootstrap(context: click.Context, config: Path) -> None:
    """Train the first champion on the seed; do nothing if there is one."""
    from services.cli.rounds import round_run

    context.invoke(round_run, bootstrap=True, config=config)
    with opened(config) as (_, registry):
        if registry.champion() is None:
            last = next(iter(registry.rounds()), None)
            raise click.ClickException(f"there is no champion: {last.detail if last else 'no round ran'}")


@click.command()
@click.argument("part", type=click.Choice(["serving", *MODULES]))
@config_option
def start(part: str, config: Path) -> None:
    """Run one process of the project until SIGTERM, in place of this one: serving, consumer, scheduler or console."""
    from services.checks.copies import note_folder
    from services.checks.preflight import refuse_broken
    from services.projects import open_project
    from services.supervisor.writable_folders import settle
    from serving.process.start import become, process_environment, serve

    settings = open_project(config)
    _refuse_embedded(settings)
    refuse_broken(settings, *CHECKED[part])
    if line := note_folder(settings):
        click.echo(line)
    environment: dict[str, Any] = dict(os.environ)
    settle(settings, environment)
    if part == "serving":
        serve(config, environment)
    command = [sys.executable, "-m", MODULES[part], "-c", str(config.absolute())]
    become(command, process_environment(part, settings, config.absolute(), environment))


def _refuse_embedded(settings: "Settings") -> None:
    if settings.embedded_broker:
        raise click.ClickException(
            "kafka.bootstrap_servers is not set: only `ratchet up` runs the embedded broker; name a broker, or use `ratchet up`"
        )
