"""What commands share: options, an opened project, output as lines or JSON.

Turns `-c FILE` into settings and a registry, and prefixes of ids into ids.
"""

import contextlib
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
as_option = click.option("--as", "--by", "by", metavar="NAME", help="act as NAME, whose key RATCHET_KEY holds")
reason_option = click.option("--reason", default="", help="give the reason, for the audit log")


@contextlib.contextmanager
def opened(config: Path) -> "Iterator[tuple[Settings, Registry]]":
    """Yield a project's settings and registry, its schema up to date; close the registry at the end."""
    from services.projects import open_project
    from services.supervisor.writable_folders import settle
    from serving.registry.registry import Registry, RegistryUnavailable

    settings = open_project(config)
    settle(settings, os.environ)
    with contextlib.closing(Registry(settings.registry_url, settings.model.name)) as registry:
        with contextlib.suppress(RegistryUnavailable):  # the command itself meets it, if it needs the registry
            registry.upgrade()
        yield settings, registry


NOUNS = {"model": "version", "access": "person", "queue": "item"}  # where a group is not called what it lists


def one_of(given: str, known: Sequence[str], group: str) -> str:
    """Return the id that a person typed: the id itself, a unique prefix, or `latest`; `known` is newest first.

    `group` is the group of the command that lists the ids. Raises UnknownId and AmbiguousId, as `ids.resolve`.
    """
    from serving.registry.ids import resolve

    return resolve(given, known, NOUNS.get(group, group), f"`ratchet {group} list`")


def round_named(registry: "Registry", given: str) -> str:
    """Return the id of the round that a person typed. Raises as `one_of`."""
    return one_of(given, [record.round_id for record in registry.rounds()], "round")


def version_named(registry: "Registry", given: str) -> str:
    """Return the model version that a person typed. Raises as `one_of`."""
    return one_of(given, [version.model_version for version in registry.versions()], "model")


def person_named(registry: "Registry", given: str) -> str:
    """Return the name of the person that a person typed, by name or key id. Raises as `one_of`."""
    keys = registry.people.list()
    by_id = {key.key_id: key.name for key in keys}
    names = [key.name for key in keys]
    known = names if any(name.startswith(given) for name in names) or given == "latest" else [*by_id]
    named = one_of(given, known, "access")
    return by_id.get(named, named)


def show(value: Any, as_json: bool, lines: list[str]) -> None:
    """Print `value` as JSON, or `lines` without control characters."""
    if as_json:
        click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))
    else:  # labels may hold terminal escape sequences
        click.echo("\n".join(one_line(part) for line in lines for part in line.split("\n")))
