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

if TYPE_CHECKING:
    from schemas.settings import Settings
    from serving.registry import Registry


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return "unknown"


def _file(_context: click.Context, _parameter: click.Parameter, value: Path) -> Path:
    from services.projects import settings_file

    return settings_file(value)


config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    default="ratchet.toml",
    show_default=True,
    callback=_file,
    help="settings file, or the folder that holds ratchet.toml",
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
    click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False) if as_json else "\n".join(lines))
