"""What commands share: options, an opened project, output as lines or JSON.

Turns `-c FILE` into settings and a registry, and prefixes of ids into ids.
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


SHOWN = 8  # ids named for an ambiguous prefix


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
    help="read this file, or this folder's ratchet.toml",
)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")
by_option = click.option("--by", default=_me, show_default="you", help="name the person who decides")
reason_option = click.option("--reason", default="", help="give the reason, for the audit log")


@contextlib.contextmanager
def opened(config: Path) -> "Iterator[tuple[Settings, Registry]]":
    """Yield a project's settings and registry; close the registry at the end."""
    from services.projects import open_project
    from services.supervisor.writable_folders import settle
    from serving.registry.registry import Registry

    settings = open_project(config)
    settle(settings, os.environ)
    with contextlib.closing(Registry(settings.registry_url, settings.model.name)) as registry:
        yield settings, registry


def one_of(given: str, known: Sequence[str], kind: str) -> str:
    """Return the id that `given` names: the id itself, a unique prefix, or `latest`.

    Args:
        given: the user's argument.
        known: every id, newest first.
        kind: group of the command that lists the ids: "round" or "model".

    Raises:
        click.ClickException: no id or several ids begin with it; the message names them.

    """
    called = {"model": "version"}.get(kind, kind)
    if not known:
        raise click.ClickException(f"there is no {called} yet: see `ratchet {kind} list`")
    if given == "latest":
        return known[0]
    matches = [given] if given in known else [name for name in known if given and name.startswith(given)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise click.ClickException(f"no {called} is or begins with {given!r}: see `ratchet {kind} list`")
    shown = ", ".join(matches[:SHOWN]) + (f" and {len(matches) - SHOWN} more" if len(matches) > SHOWN else "")
    raise click.ClickException(f"{len(matches)} {called}s begin with {given!r}: {shown}; type more of the id")


def round_named(registry: "Registry", given: str) -> str:
    """Return the id of the round that an id, a unique prefix or `latest` names. Raises as `one_of`."""
    return one_of(given, [record.round_id for record in registry.rounds()], "round")


def version_named(registry: "Registry", given: str) -> str:
    """Return the model version that an id, a unique prefix or `latest` names. Raises as `one_of`."""
    return one_of(given, [version.model_version for version in registry.versions()], "model")


def show(value: Any, as_json: bool, lines: list[str]) -> None:
    """Print `value` as JSON, or `lines` without control characters."""
    if as_json:
        click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))
    else:  # labels may hold terminal escape sequences
        click.echo("\n".join(one_line(part) for line in lines for part in line.split("\n")))
