"""Ids as people type them: the id itself, any unique prefix, or `latest`.

Turns what a person typed and the known ids into one id. The command line and the console use it for rounds, versions, people and
whatever else has an id. It reads no database: the caller passes the ids, newest first.
"""

from collections.abc import Sequence

SHOWN = 8  # ids named for an ambiguous prefix


class UnknownId(KeyError):
    """No id is or begins with what was typed."""


class AmbiguousId(ValueError):
    """Several ids begin with what was typed; `matches` holds them, newest first."""

    def __init__(self, message: str, matches: Sequence[str]) -> None:
        super().__init__(message)
        self.matches = matches


def resolve(given: str, known: Sequence[str], noun: str, where: str) -> str:
    """Return the id that `given` names: the id itself, a unique prefix, or `latest`.

    Args:
        given: what the person typed.
        known: every id, newest first.
        noun: what has the id, in the singular: "round".
        where: where the ids can be seen, for the message: "`ratchet round list`".

    Raises:
        UnknownId: no id begins with it, or there are no ids.
        AmbiguousId: several do.

    """
    ids = list(dict.fromkeys(known))
    if not ids:
        raise UnknownId(f"there is no {noun} yet: see {where}")
    if given in ids:
        return given
    if given == "latest":
        return ids[0]
    matches = [name for name in ids if given and name.startswith(given)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise UnknownId(f"no {noun} is or begins with {given!r}: see {where}")
    shown = ", ".join(matches[:SHOWN]) + (f" and {len(matches) - SHOWN} more" if len(matches) > SHOWN else "")
    raise AmbiguousId(f"{len(matches)} {noun}s begin with {given!r}: {shown}; type more of the id", matches)
