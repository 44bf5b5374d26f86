"""What the commands share: their options, an opened project, and how an answer is printed.

Turns `-c FILE` into settings and a registry. Every command of cli.py, cli/rounds.py and cli/models.py uses it. It
deliberately holds no command.
"""

import contextlib
import getpass
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.printable import one_line

if TYPE_CHECKING:
    from schemas.settings import Settings
    from serving.registry.registry import Registry


SHOWN = 8  # candidates named for a prefix of several ids


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
    from services.supervisor.writable_folders import settle
    from serving.registry.registry import Registry

    settings = open_project(config)
    settle(settings, os.environ)
    registry = Registry(settings.registry_url, settings.model.name)
    try:
        yield settings, registry
    finally:
        registry.close()


def one_of(given: str, known: Sequence[str], kind: str) -> str:
    """Return the id that `given` stands for: itself, a unique prefix of it, or `latest`.

    Args:
        given: what the user typed.
        known: every id, the newest first.
        kind: what the ids name, and the command that lists them: "round", "model".

    Raises:
        click.ClickException: no id or several begin with it; the message names the candidates.

    """
    called = {"model": "version"}.get(kind, kind)
    if not known:
        raise click.ClickException(f"there is no {called} yet: see `ratchet {kind} list`")
    if given == "latest":
        return known[0]
    found = [given] if given in known else [name for name in known if given and name.startswith(given)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise click.ClickException(f"no {called} is or begins with {given!r}: see `ratchet {kind} list`")
    shown = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    raise click.ClickException(f"{len(found)} {called}s begin with {given!r}: {shown}; type more of the id")


def round_named(registry: "Registry", given: str) -> str:
    """Return the id of the round that a unique prefix, or `latest`, stands for. Raises as `one_of`."""
    return one_of(given, [record.round_id for record in registry.rounds()], "round")


def version_named(registry: "Registry", given: str) -> str:
    """Return the name of the model version that a unique prefix, or `latest`, stands for. Raises as `one_of`."""
    return one_of(given, [version.model_version for version in registry.versions()], "model")


def show(value: Any, as_json: bool, lines: list[str]) -> None:
    """Print JSON, or lines."""
    if as_json:
        click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))
    else:  # a label may hold what a terminal obeys
        click.echo("\n".join(one_line(part) for line in lines for part in line.split("\n")))
