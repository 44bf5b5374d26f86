"""`ratchet access`: the keys that apps call with.

Turns arguments into a keys.env. cli.py adds the group. It shows no key.
"""

from pathlib import Path

import click

from services.cli.project import by_option, config_option

COSTS = (
    "the secret is new: users get new pseudonyms (their earlier feedback counts as other people's), and feedback tokens "
    "given out before are refused"
)


@click.group()
def access() -> None:
    """Keys of the API."""


@access.command(name="keys")
@click.option(
    "--renew",
    type=click.Choice(["api-key", "secret", "all"]),
    help="replace what the file holds: the API key alone (the secret stays), the secret alone, or both",
)
@config_option
@by_option
def access_keys(renew: str | None, config: Path, by: str) -> None:
    """Make the keys that keys.env lacks, or new ones.

    A new API key locks out apps until they are told. A new secret gives users new pseudonyms and refuses the feedback tokens
    given out before: renew it only if it became known.
    """
    from services.projects import open_project
    from serving.http.access import API_KEY, SECRET, Keys, KeysMissing, fresh_key, keys_in, store_keys

    settings = open_project(config)
    path = settings.path(settings.access.keys)
    try:
        found = keys_in(path)
    except KeysMissing as error:
        if path.exists() and renew != "all":
            raise click.ClickException(str(error)) from error
        found = {}
    wanted = {"api-key": [API_KEY], "secret": [SECRET], "all": [API_KEY, SECRET]}.get(renew or "", [])
    made = [name for name in (API_KEY, SECRET) if name in wanted or not found.get(name)]
    if not made:
        raise click.ClickException(f"{path} holds both keys: choose what to replace with --renew api-key|secret|all")
    if path.exists() and not found and renew != "all":
        raise click.ClickException(f"{path} holds no keys: `ratchet access keys --renew all` replaces the file")
    values = {**found, **{name: fresh_key() for name in made}}
    store_keys(path, Keys(api_key=values[API_KEY], secret=values[SECRET]))
    click.echo(f"{path}: {' and '.join(made)} made; `ratchet up` reads it when it starts")
    if SECRET in made:
        click.echo(COSTS)
    _audit(config, by, made)


def _audit(config: Path, by: str, made: list[str]) -> None:
    """Note in the audit log which keys were made, never their values; a registry that is away is no reason to fail."""
    from services.cli.project import opened
    from serving.registry.registry import RegistryUnavailable

    try:
        with opened(config) as (_, registry):
            registry.audit(by, "access keys", {"made": made})
    except RegistryUnavailable as error:
        click.echo(f"not in the audit log: {str(error).splitlines()[0]}", err=True)
