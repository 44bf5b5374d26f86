"""`ratchet labels`: change the taxonomy that feedback is checked against and that rounds train.

Turns names into changes of the registry's taxonomy, each with a row of the audit log. Files and models stay as they are: rows
keep their label names, and the champion keeps its outputs until a round promotes another version.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.records import Role
from schemas.targets import LABELLED, BadTarget, label_name
from services.cli.identity import acting
from services.cli.project import as_option, config_option, json_option, opened, reason_option, show

if TYPE_CHECKING:
    from serving.registry.registry import Registry

MEANWHILE = "the champion predicts its own labels until a round promotes another version"


@click.group()
def labels() -> None:
    """List and change the labels that feedback may use."""


@labels.command(name="list")
@config_option
@json_option
def labels_list(config: Path, as_json: bool) -> None:
    """List all labels and their states."""
    with opened(config) as (_, registry):
        taxonomy = registry.labels()
    lines = [
        f"{label.name}  {label.state}" + (f" into {label.merged_into}" * bool(label.merged_into)) for label in taxonomy
    ]
    show([label.model_dump() for label in taxonomy], as_json, lines)


@labels.command(name="add")
@click.argument("names", nargs=-1, required=True)
@config_option
@as_option
def labels_add(names: tuple[str, ...], config: Path, by: str | None) -> None:
    """Add labels, for use at once; restore retired or merged ones."""
    wanted = [_name(name) for name in names]
    with _changing(config, by) as (registry, actor):
        added, again = registry.take_up_labels(wanted, actor=actor)
    lines = [f"added: {', '.join(added)}"] * bool(added) + [f"in use again: {', '.join(again)}"] * bool(again)
    click.echo("; ".join(lines) or "known already: nothing added")


@labels.command(name="retire")
@click.argument("name")
@config_option
@as_option
@reason_option
def labels_retire(name: str, config: Path, by: str | None, reason: str) -> None:
    """Retire label NAME: stop training it, refuse its feedback."""
    with _changing(config, by) as (registry, actor):
        registry.retire_label(_name(name), actor=actor, reason=reason)
    click.echo(f"retired: {_name(name)}; {MEANWHILE}")


@labels.command(name="rename")
@click.argument("name")
@click.argument("to")
@config_option
@as_option
@reason_option
def labels_rename(name: str, to: str, config: Path, by: str | None, reason: str) -> None:
    """Rename label NAME to TO, with its rows and feedback."""
    with _changing(config, by) as (registry, actor):
        registry.rename_label(_name(name), _name(to), actor=actor, reason=reason)
    click.echo(f"renamed: {_name(name)} is {_name(to)} from now on; {MEANWHILE}")


@labels.command(name="merge")
@click.argument("name")
@click.argument("into")
@config_option
@as_option
@reason_option
def labels_merge(name: str, into: str, config: Path, by: str | None, reason: str) -> None:
    """Merge label NAME into INTO, with its rows and feedback."""
    with _changing(config, by) as (registry, actor):
        registry.merge_labels(_name(name), _name(into), actor=actor, reason=reason)
    click.echo(f"merged: {_name(name)} is {_name(into)} from now on; {MEANWHILE}")


def _name(given: str) -> str:
    """Return the normalised name of a label. Raises UsageError."""
    try:
        return label_name(given)
    except BadTarget as error:
        raise click.UsageError(f"a label may not be empty, got {given!r}: {error}") from error


@contextmanager
def _changing(config: Path, by: str | None) -> "Iterator[tuple[Registry, str]]":
    with opened(config) as (settings, registry):
        if settings.model.task not in LABELLED:
            raise click.ClickException(f"model.task = {settings.model.task}: {settings.model.task} has no labels")
        yield registry, acting(settings, registry, by, Role.REVIEW)
