"""`ratchet model` and `ratchet audit`: list versions, roll back, verify the audit log.

Turns arguments into calls on the registry. It loads no model.
"""

import contextlib
import sys
from pathlib import Path

import click

from services.cli.project import by_option, config_option, json_option, opened, reason_option, show, version_named


@click.group()
def model() -> None:
    """List model versions and roll back."""


@model.command(name="list")
@config_option
@json_option
def model_list(config: Path, as_json: bool) -> None:
    """List all versions, newest first."""
    with opened(config) as (_, registry):
        versions, champion = registry.versions(), registry.champion()
    live = champion.model_version if champion else None
    lines = [
        f"{'*' if v.model_version == live else ' '} {v.model_version}  {'servable' if v.servable else '-':<8}"
        f"  {f'approved by {v.approved_by}' if v.approved_by else ''}".rstrip()
        for v in versions
    ]
    value = [{**v.model_dump(mode="json"), "champion": v.model_version == live} for v in versions]
    show(value, as_json, lines or ["no versions yet"])


@model.command(name="rollback")
@click.argument("version", required=False)
@config_option
@by_option
@reason_option
@json_option
def model_rollback(version: str | None, config: Path, by: str, reason: str, as_json: bool) -> None:
    """Roll back to an earlier VERSION; default: the previous champion."""
    from services.checks.champion import wrong_files
    from services.rounds.announce import announce
    from services.rounds.prune import refuse_pruned

    with opened(config) as (settings, registry):
        history = registry.promotions()
        live = history[0].model_version if history else None
        wanted = (
            version_named(registry, version)
            if version
            else next((c.model_version for c in history if c.model_version != live), None)
        )
        if wanted is None:
            raise click.ClickException("there is no other version to roll back to: see `ratchet model list`")
        if wanted == live:
            raise click.ClickException(
                f"{wanted} is the champion already: name an earlier version of `ratchet model list`"
            )
        refuse_pruned(settings, registry, wanted)
        with contextlib.suppress(
            ConnectionError
        ):  # an unreachable store is no error: workers may have the version cached
            if wrong := wrong_files(settings, registry.version(wanted).digest):
                raise click.ClickException(f"{wanted} cannot be served: {wrong}; name another version")
        champion = registry.promote(wanted, expected=live, token=None, actor=by)
        registry.audit(by, "rollback", {"from": live, "to": wanted, "reason": reason})
        announce(settings, registry, champion)
    show(champion.model_dump(mode="json"), as_json, [f"{wanted} is the champion, generation {champion.generation}"])


@click.group()
def audit() -> None:
    """Verify the audit log."""


@audit.command(name="verify")
@config_option
@json_option
def audit_verify(config: Path, as_json: bool) -> None:
    """Verify the hash chain; exit 1 if it is broken."""
    with opened(config) as (_, registry):
        wrong = registry.verify_audit()
    show({"ok": not wrong, "wrong": wrong}, as_json, wrong or ["the audit log is whole"])
    sys.exit(1 if wrong else 0)
