"""`ratchet access add`, `list`, `revoke` and `rotate`: people and apps with named keys.

Turns arguments into changes of the registry's people, each with a row of the audit log. A new key is printed once, alone on
standard output, so that a shell can catch it: KEY=$(ratchet access add ann --roles review).
"""

from pathlib import Path

import click

from schemas.records import NamedKey, Role
from services.cli.identity import acting
from services.cli.project import as_option, config_option, json_option, opened, person_named, show

ONCE = "the key is shown this once: only its hash is stored"
ROLES = ", ".join(role.value for role in Role)


@click.command(name="add")
@click.argument("name")
@click.option("--roles", required=True, help=f"give these roles, separated by commas: {ROLES}")
@click.option("--rate", help="allow this many requests, such as 600/minute; default: access.rate")
@click.option("--quota", help="allow this many texts, such as 100000/day; default: access.quota")
@config_option
@as_option
@json_option
def add(
    name: str, roles: str, rate: str | None, quota: str | None, config: Path, by: str | None, as_json: bool
) -> None:
    """Add the person or app NAME; print its key, once."""
    wanted = [role.strip() for role in roles.split(",") if role.strip()]
    with opened(config) as (settings, registry):
        actor = acting(settings, registry, by, Role.ADMIN)
        key = registry.people.add(name, wanted, by=actor, rate=rate, quota=quota)
    _show_key(name, key, as_json)


@click.command(name="rotate")
@click.argument("name")
@click.option(
    "--overlap-hours",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    help="let the earlier key work for this long",
)
@config_option
@as_option
@json_option
def rotate(name: str, overlap_hours: float, config: Path, by: str | None, as_json: bool) -> None:
    """Give NAME a new key; the earlier one goes on for a while."""
    with opened(config) as (settings, registry):
        actor = acting(settings, registry, by, Role.ADMIN)
        name = person_named(registry, name)
        key = registry.people.rotate(name, overlap_s=overlap_hours * 3600, by=actor)
    _show_key(name, key, as_json)


@click.command(name="revoke")
@click.argument("name")
@config_option
@as_option
@json_option
def revoke(name: str, config: Path, by: str | None, as_json: bool) -> None:
    """End every key of NAME; serving refuses it within seconds."""
    with opened(config) as (settings, registry):
        actor = acting(settings, registry, by, Role.ADMIN)
        name = person_named(registry, name)
        registry.people.revoke(name, by=actor)
    show({"name": name, "revoked": True}, as_json, [f"{name} has no key any more"])


@click.command(name="list")
@config_option
@json_option
def list_people(config: Path, as_json: bool) -> None:
    """List everybody with a valid key."""
    with opened(config) as (_, registry):
        keys = registry.people.list()
    value = [key.model_dump(mode="json", exclude={"key_hash"}) for key in keys]
    show(value, as_json, [_line(key) for key in keys] or ["nobody yet: add people with `ratchet access add`"])


def _line(key: NamedKey) -> str:
    limits = " ".join(limit for limit in (key.rate, key.quota) if limit)
    ends = f"until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
    line = f"{key.name:<24} {','.join(key.roles):<24} {key.key_id}  {key.created_at:%Y-%m-%d %H:%M}  {limits} {ends}"
    return line.rstrip()


def _show_key(name: str, key: str, as_json: bool) -> None:
    show({"name": name, "key": key}, as_json, [key])
    click.echo(ONCE, err=True)
