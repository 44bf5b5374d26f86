"""`ratchet access`: the keys of the project and of its people.

Turns arguments into keys.env, which it never prints. The commands for people are in people.py.
"""

from pathlib import Path

import click

from schemas.records import Role
from services.cli import people
from services.cli.identity import acting, operator
from services.cli.project import as_option, config_option, json_option, opened, show

WHEN = "serving takes a new API key within seconds, a new secret when it starts"
COSTS = (
    "the secret is new: users get new pseudonyms (their earlier feedback counts as other users'), feedback tokens issued before "
    "are refused, and feedback on earlier predictions gets 404 unless access.unknown_predictions is accept"
)


@click.group()
def access() -> None:
    """Manage people, their keys and roles, and the project's own keys."""


for command in (people.add, people.list_people, people.revoke, people.rotate):
    access.add_command(command)


@access.command(name="database-role")
@click.argument("role", metavar="ROLE")
@config_option
@as_option
@json_option
def database_role(role: str, config: Path, by: str | None, as_json: bool) -> None:
    """Let the Postgres user ROLE read what serving needs and write heartbeats, nothing else; make it if it is missing.

    Run it again after an upgrade. Set registry.serving_url to a URL with this user.
    """
    from serving.registry.safeguards.database_role import grant_serving

    with opened(config) as (settings, registry):
        actor = acting(settings, registry, by, Role.ADMIN)
        password = grant_serving(registry.database, role)
        registry.audit(actor, "access database-role", {"role": role, "made": password is not None})
    made = f"made {role}; its password, shown this once: {password}" if password else f"{role} has serving's rights"
    show({"role": role, "password": password}, as_json, [made])


@access.command(name="keys")
@click.option(
    "--renew",
    type=click.Choice(["api-key", "secret", "all"]),
    help="replace the API key, the secret, or both",
)
@config_option
def access_keys(renew: str | None, config: Path) -> None:
    """Make the keys that keys.env lacks, or replace them.

    Apps need the new API key to go on. A new secret gives users new pseudonyms, and refuses feedback tokens and prediction ids
    of before: renew it only if it became known.
    """
    from services.projects import open_project
    from serving.http.access import API_KEY, SECRET, Keys, fresh_key, keys_in, store_keys
    from serving.keys_file import KeysMissing

    settings = open_project(config)
    path = settings.path(settings.access.keys)
    try:
        stored = keys_in(path)
    except KeysMissing as error:
        if path.exists() and renew != "all":
            raise click.ClickException(str(error)) from error
        stored = {}
    wanted = {"api-key": [API_KEY], "secret": [SECRET], "all": [API_KEY, SECRET]}.get(renew or "", [])
    made = [name for name in (API_KEY, SECRET) if name in wanted or not stored.get(name)]
    if not made:
        raise click.ClickException(f"{path} holds both keys: name the one to replace with --renew api-key|secret|all")
    if path.exists() and not stored and renew != "all":
        raise click.ClickException(f"{path} holds no keys: `ratchet access keys --renew all` replaces the file")
    values = {**stored, **{name: fresh_key() for name in made}}
    store_keys(path, Keys(api_key=values[API_KEY], secret=values[SECRET]))
    click.echo(f"{path}: {' and '.join(made)} made; {WHEN}")
    if SECRET in made:
        click.echo(COSTS)
    _audit(config, made)


def _audit(config: Path, made: list[str]) -> None:
    """Record in the audit log which keys were made, without their values; only warn if the registry is unreachable."""
    from serving.registry.registry import RegistryUnavailable

    try:
        with opened(config) as (_, registry):
            registry.audit(operator(), "access keys", {"made": made})
    except RegistryUnavailable as error:
        click.echo(f"not in the audit log: {str(error).splitlines()[0]}", err=True)
