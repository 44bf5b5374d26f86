"""`ratchet access`: make and renew the project's keys.

Turns arguments into keys.env. It never prints a key.
"""

from pathlib import Path

import click

from services.cli.project import by_option, config_option

COSTS = (
    "the secret is new: users get new pseudonyms (their earlier feedback counts as other users'), and feedback tokens issued "
    "before are refused"
)


@click.group()
def access() -> None:
    """Make and renew the API key and the secret."""


@access.command(name="keys")
@click.option(
    "--renew",
    type=click.Choice(["api-key", "secret", "all"]),
    help="replace the API key, the secret, or both",
)
@config_option
@by_option
def access_keys(renew: str | None, config: Path, by: str) -> None:
    """Make the keys that keys.env lacks, or replace them.

    Apps need the new API key to go on. A new secret gives users new pseudonyms and refuses feedback tokens issued before: renew
    it only if it became known.
    """
    from services.projects import open_project
    from serving.http.access import API_KEY, SECRET, Keys, KeysMissing, fresh_key, keys_in, store_keys

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
    click.echo(f"{path}: {' and '.join(made)} made; `ratchet up` reads it when it starts")
    if SECRET in made:
        click.echo(COSTS)
    _audit(config, by, made)


def _audit(config: Path, by: str, made: list[str]) -> None:
    """Record in the audit log which keys were made, without their values; only warn if the registry is unreachable."""
    from services.cli.project import opened
    from serving.registry.registry import RegistryUnavailable

    try:
        with opened(config) as (_, registry):
            registry.audit(by, "access keys", {"made": made})
    except RegistryUnavailable as error:
        click.echo(f"not in the audit log: {str(error).splitlines()[0]}", err=True)
