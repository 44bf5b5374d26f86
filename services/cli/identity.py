"""Who acts on the command line: a person with a named key, or the operator of the machine.

Turns the variable RATCHET_KEY, `--as NAME` and the role that a command needs into the actor of the audit log. Commands that
change or decide something call it. It trusts no name that a caller merely typed.

Two ways lead in. A person's key identifies the person. Without a key, whoever can read keys.env is the operator of this machine:
that person could read and change every file of the project anyway. The operator manages people at any time, so a lost admin key
locks nobody out, and decides on versions until the first reviewer is registered; from then on decisions need a reviewer's key.
"""

import os
import pwd
from typing import TYPE_CHECKING

import click

from schemas.records import Role

if TYPE_CHECKING:
    from schemas.settings import Settings
    from serving.registry.registry import Registry

KEY = "RATCHET_KEY"


def acting(settings: "Settings", registry: "Registry", name: str | None, role: Role) -> str:
    """Return who acts, for the audit log: a person's name, or `operator:USER` with the process's user.

    Args:
        settings: of the project.
        registry: of the project.
        name: of `--as`; None if the option is absent.
        role: that the command needs; ADMIN for the management of people and data.

    Raises:
        click.ClickException: the key is not valid or somebody else's, its holder lacks the role, or a key is needed.
        KeysMissing: without a key, and keys.env cannot be read.

    """
    if key := os.environ.get(KEY, "").strip():
        return _person(registry, key, name, role)
    if name is not None:
        raise click.ClickException(f"--as {name} needs {name}'s key: set {KEY} (`ratchet access add {name}` makes one)")
    from serving.http.access import read_keys

    read_keys(settings.path(settings.access.keys))
    if role is Role.REVIEW and (reviewers := registry.people.reviewers()):
        names = ", ".join(sorted({reviewer.name for reviewer in reviewers}))
        raise click.ClickException(f"a reviewer has to decide this ({names}): set {KEY} to the reviewer's key")
    return operator()


def _person(registry: "Registry", key: str, name: str | None, role: Role) -> str:
    person = registry.people.verify(key)
    if person is None:
        raise click.ClickException(f"{KEY} is not a valid key of this project: see `ratchet access list`, or unset it")
    if name not in (None, person.name):
        raise click.ClickException(f"{KEY} is {person.name}'s key, not {name}'s: set {name}'s key, or leave --as out")
    if not person.may(role):
        has = ", ".join(person.roles)
        raise click.ClickException(f"this needs the role {role}, and {person.name} has {has}: ask an admin")
    return person.name


def operator() -> str:
    """Return `operator:USER`, by the kernel's user id: variables such as LOGNAME can say anything."""
    try:
        return f"operator:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # a container may run as a user without a name
        return f"operator:{os.getuid()}"
