"""People of the console: who holds a key, and what they may do.

Turns a key into a `Person` with rights. The operator's key in keys.env opens everything on one machine; named keys have the
roles that `ratchet access add` gave them; the API key, which apps hold, opens /try alone. sign_in.py calls it.
"""

import hmac
import logging
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from serving.atomic_write import atomic_write
from serving.http.access import fresh_key, keyed_hash
from serving.keys_file import assignments

log = logging.getLogger("ratchet.console")

OPERATOR, APP = "operator", "app"
CONSOLE_KEY = "RATCHET_CONSOLE_KEY"
COMMENT = f"# {CONSOLE_KEY}: signs the operator of this machine in to the console. Give others a key of their own.\n"


class Right(StrEnum):
    """What a person may do. Each action and page names the right that it needs."""

    TRY = "try"
    VIEW = "view"
    LABEL = "label"
    DECIDE = "decide"
    OPERATE = "operate"


# Roles are those of `ratchet access add`; an app's key opens no page but /try.
RIGHTS: dict[str, frozenset[Right]] = {
    "predict": frozenset({Right.TRY}),
    "feedback": frozenset({Right.TRY}),
    "review": frozenset({Right.TRY, Right.VIEW, Right.LABEL, Right.DECIDE}),
    "admin": frozenset(Right),
}


@dataclass(frozen=True)
class Person:
    """Somebody who has signed in. `is_operator`: by the key in keys.env, not by a key of their own."""

    name: str
    roles: tuple[str, ...]
    is_operator: bool = False

    @property
    def role(self) -> str:
        """Return the roles in one line."""
        return ", ".join(self.roles)

    def may(self, right: Right) -> bool:
        """Return whether one of the person's roles includes a right."""
        return any(right in RIGHTS.get(role, frozenset()) for role in self.roles)


class Forbidden(PermissionError):
    """The person's roles do not include the right; the message names both."""


def require(person: Person, right: Right) -> None:
    """Raise Forbidden unless the person has the right."""
    if not person.may(right):
        able = " or ".join(role for role, rights in RIGHTS.items() if right in rights)
        raise Forbidden(f"{person.name} has the role {person.role}, and this needs {able}: ask an admin")


def fingerprint(secret: str, key: str) -> str:
    """Return what identifies a key in a session without giving it away; it changes with the key."""
    return keyed_hash(secret, "console key", key).hex()[:16]


def is_key(known: str, key: str) -> bool:
    """Return whether `key` is the known one, in constant time. An empty one is nobody's."""
    return bool(known) and hmac.compare_digest(key.encode(), known.encode())


def operator_key(path: Path) -> str:
    """Return the operator's key of keys.env, which is made at the first start; empty if it cannot be written.

    It is not the API key: apps hold that one, and they decide nothing. Raises KeysMissing without keys.env.
    """
    if known := assignments(path).get(CONSOLE_KEY):
        return known
    made = fresh_key()
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\n")
        atomic_write(path, f"{text}\n{COMMENT}{CONSOLE_KEY}={made}\n", mode=0o600)
    except OSError as error:
        log.warning("%s cannot be written (%s): sign in with a named key", path, error)
        return ""
    return made
