"""What the commands share: their options, an opened project, and how an answer is printed.

Turns `-c FILE` into settings and a registry. Every command of cli.py, cli_rounds.py and cli_models.py uses it. It
deliberately holds no command.
"""

import contextlib
import getpass
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.printable import one_line

if TYPE_CHECKING:
    from schemas.settings import Settings
    from serving.registry import Registry


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return "unknown"


config_option = click.option(
    "-c", "--config", type=click.Path(path_type=Path), default="ratchet.toml", show_default=True, help="settings file"
)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")
by_option = click.option("--by", default=_me, show_default="you", help="who decides")
reason_option = click.option("--reason", default="", help="why")


@contextlib.contextmanager
def opened(config: Path) -> "Iterator[tuple[Settings, Registry]]":
    """A project's settings and registry."""
    from services.projects import open_project
    from serving.registry import Registry

    settings = open_project(config)
    registry = Registry(settings.registry_url, settings.model.name)
    try:
        yield settings, registry
    finally:
        registry.close()


def show(value: Any, as_json: bool, lines: list[str]) -> None:
    """Print JSON, or lines."""
    if as_json:
        click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))
    else:  # a label may hold what a terminal obeys
        click.echo("\n".join(one_line(part) for line in lines for part in line.split("\n")))
