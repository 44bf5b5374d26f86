"""`ratchet model`, `labels` and `audit`: what the registry holds besides rounds.

Turns arguments into calls on the registry. cli.py adds these groups. It deliberately loads no model.
"""

import sys
from pathlib import Path

import click

from schemas.targets import LABELLED
from services.cli_project import by_option, config_option, json_option, opened, reason_option, show


@click.group()
def model() -> None:
    """Model versions."""


@model.command(name="list")
@config_option
@json_option
def model_list(config: Path, as_json: bool) -> None:
    """All versions, newest first."""
    with opened(config) as (_, registry):
        found, champion = registry.versions(), registry.champion()
    live = champion.model_version if champion else None
    lines = [
        f"{'*' if v.model_version == live else ' '} {v.model_version}  {'servable' if v.servable else '-':<8}"
        f"  {f'approved by {v.approved_by}' if v.approved_by else ''}".rstrip()
        for v in found
    ]
    value = [{**v.model_dump(mode="json"), "champion": v.model_version == live} for v in found]
    show(value, as_json, lines or ["no versions yet"])


@model.command(name="rollback")
@click.argument("version", required=False)
@config_option
@by_option
@reason_option
@json_option
def model_rollback(version: str | None, config: Path, by: str, reason: str, as_json: bool) -> None:
    """Make an earlier VERSION the champion again; default: the one before."""
    from services.announce import announce
    from services.prune import refuse_pruned

    with opened(config) as (settings, registry):
        history = registry.promotions()
        live = history[0].model_version if history else None
        wanted = version or next((c.model_version for c in history if c.model_version != live), None)
        if wanted is None:
            raise click.ClickException("there is no other version to roll back to: see `ratchet model list`")
        if wanted == live:
            raise click.ClickException(f"{wanted} is the champion already")
        refuse_pruned(settings, registry, wanted)
        champion = registry.promote(wanted, expected=live, token=None, actor=by)
        registry.audit(by, "rollback", {"from": live, "to": wanted, "reason": reason})
        announce(settings, registry, champion)
    show(champion.model_dump(mode="json"), as_json, [f"{wanted} is the champion, generation {champion.generation}"])


@click.group()
def labels() -> None:
    """The taxonomy that feedback is checked against."""


@labels.command(name="list")
@config_option
@json_option
def labels_list(config: Path, as_json: bool) -> None:
    """All labels."""
    with opened(config) as (_, registry):
        found = registry.labels()
    show([label.model_dump() for label in found], as_json, [f"{label.name}  {label.state}" for label in found])


@labels.command(name="add")
@click.argument("names", nargs=-1, required=True)
@config_option
@by_option
def labels_add(names: tuple[str, ...], config: Path, by: str) -> None:
    """Add labels; feedback may use them at once."""
    wanted = [name.strip() for name in names]
    if not all(wanted):
        raise click.UsageError("a label may not be empty")
    with opened(config) as (settings, registry):
        if settings.model.task not in LABELLED:
            raise click.ClickException(f"{settings.model.task} has no labels")
        known = {label.name for label in registry.labels()}
        fresh = [name for name in dict.fromkeys(wanted) if name not in known]
        registry.set_labels(fresh)
        registry.audit(by, "labels add", {"names": fresh})
    click.echo(f"added: {', '.join(fresh)}" if fresh else "known already: nothing added")


@click.group()
def audit() -> None:
    """The audit log."""


@audit.command(name="verify")
@config_option
@json_option
def audit_verify(config: Path, as_json: bool) -> None:
    """Check the hash chain; exit 1 if it is broken."""
    with opened(config) as (_, registry):
        wrong = registry.verify_audit()
    show({"ok": not wrong, "wrong": wrong}, as_json, wrong or ["the audit log is whole"])
    sys.exit(1 if wrong else 0)
