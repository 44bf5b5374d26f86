"""`ratchet model`: list versions and roll back; advice.py adds `model advise`.

Turns arguments into calls on the registry. It loads no model.
"""

import contextlib
from pathlib import Path

import click

from schemas.records import Role
from services.cli.advice import model_advise
from services.cli.identity import acting
from services.cli.project import as_option, config_option, json_option, opened, reason_option, show, version_named


@click.group()
def model() -> None:
    """List model versions, roll back, and choose a base model."""


@model.command(name="list")
@config_option
@json_option
def model_list(config: Path, as_json: bool) -> None:
    """List all versions, newest first."""
    with opened(config) as (_, registry):
        versions, champion = registry.versions(), registry.champion()
    live = champion.model_version if champion else None
    lines = [
        f"{'*' if v.model_version == live else ' '} {v.model_version}  {v.state:<17}"
        f"  {f'approved by {v.approved_by}' if v.approved_by else ''}".rstrip()
        for v in versions
    ]
    value = [{**v.model_dump(mode="json"), "champion": v.model_version == live} for v in versions]
    show(value, as_json, lines or ["no versions yet"])


@model.command(name="rollback")
@click.argument("version", required=False)
@config_option
@as_option
@reason_option
@json_option
def model_rollback(version: str | None, config: Path, by: str | None, reason: str, as_json: bool) -> None:
    """Roll back to an earlier VERSION that has served; default: the newest champion that nobody rolled back.

    A version that was itself rolled back needs its name and --reason.
    """
    from services.checks.champion import wrong_files
    from services.rounds.announce import announce
    from services.rounds.prune import refuse_pruned

    with opened(config) as (settings, registry):
        wanted = version_named(registry, version) if version else None
        actor = acting(settings, registry, by, Role.REVIEW)
        live = registry.champion()
        if live is None:
            raise click.ClickException("there is no champion yet: `ratchet round run` trains one")
        wanted = registry.rollback_target(wanted, live.model_version)
        refuse_pruned(settings, registry, wanted)
        with contextlib.suppress(
            ConnectionError
        ):  # an unreachable store is no error: workers may have the version cached
            if wrong := wrong_files(settings, registry.version(wanted).digest):
                raise click.ClickException(f"{wanted} cannot be served: {wrong}; name another version")
        champion = registry.roll_back(to=wanted, expected=live.model_version, actor=actor, reason=reason)
        announce(settings, registry, champion)
    show(champion.model_dump(mode="json"), as_json, [f"{wanted} is the champion, generation {champion.generation}"])


model.add_command(model_advise)
