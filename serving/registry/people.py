"""People and apps with named keys: who may predict, send feedback, review and administer.

Turns a name and roles into a key that is shown once, and a presented key into a `Person`. The command line and the console
manage people here; serving reads the hashes. What a key looks like, and why SHA-256 is enough, is in serving/named_keys.py.

The registry stores a key's SHA-256, so neither a copy of the database nor a backup lets anybody in.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from schemas.records import NamedKey, Person, Role
from schemas.setting_groups import LIMIT
from serving.named_keys import key_hash, key_id_of, make_key, person_of
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.database import Database, iso, values

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
RESERVED = frozenset({"gates", "machine", "operator", "scheduler"})  # actors of the audit log that are no people
OVERLAP_S = 24 * 3600.0


class UnknownPerson(KeyError):
    """The registry has no valid key of that person."""


class PersonExists(ValueError):
    """The person has a valid key already."""


class People:
    """The people of one model's project."""

    def __init__(self, database: Database, audit_log: AuditLog) -> None:
        self._database = database
        self._audit_log = audit_log

    def add(
        self,
        name: str,
        roles: Iterable[Role | str],
        *,
        by: str = "operator",
        rate: str | None = None,
        quota: str | None = None,
    ) -> str:
        """Return a new person's key. It is stored as a hash alone, so it cannot be shown again.

        Args:
            name: of a person or an app; the audit log names it.
            roles: at least one.
            by: who adds it, for the audit log.
            rate: requests within a time, such as 600/minute; None: the setting access.rate.
            quota: texts within a time, such as 100000/day; None: the setting access.quota.

        Raises:
            PersonExists: the name has a valid key.
            ValueError: name, roles, rate or quota is not valid.

        """
        person = Person(name=_name(name), roles=_roles(roles), key_id="", rate=_limit(rate), quota=_limit(quota))
        with self._database.write() as connection:
            if self._valid(connection, name):
                raise PersonExists(f"{name} has a key: `ratchet access rotate {name}` replaces it, `revoke` ends it")
            key = self._insert(connection, person)
            self._note(connection, by, "access add", name, key, roles=[role.value for role in person.roles])
            return key

    def rotate(self, name: str, *, overlap_s: float = OVERLAP_S, by: str = "operator") -> str:
        """Return a new key with the same roles; the earlier ones end after `overlap_s` seconds. Raises UnknownPerson."""
        now = self._database.clock()
        with self._database.write() as connection:
            earlier = self._known(connection, name)
            ends = iso(now + timedelta(seconds=overlap_s))
            later = t.people.c.expires_at.is_(None) | (t.people.c.expires_at > ends)
            valid = self._named(name) & t.people.c.revoked_at.is_(None) & later
            connection.execute(t.people.update().where(valid).values(expires_at=ends))
            key = self._insert(connection, earlier[0])
            self._note(connection, by, "access rotate", name, key, earlier_key_ends=ends)
            return key

    def revoke(self, name: str, *, by: str = "operator") -> None:
        """End every key of a person at once. Raises UnknownPerson."""
        with self._database.write() as connection:
            self._known(connection, name)
            open_keys = self._named(name) & t.people.c.revoked_at.is_(None)
            connection.execute(t.people.update().where(open_keys).values(revoked_at=self._database.now()))
            self._audit_log.append(connection, by, "access revoke", {"name": name})

    def verify(self, key: str) -> Person | None:
        """Return who presents a key; None if it is unknown, wrong, revoked or expired."""
        key_id = key_id_of(key)
        if key_id is None:
            return None
        with self._database.read() as connection:
            stored = {one.key_id: one for one in self._select(connection, t.people.c.key_id == key_id)}
        return person_of(stored, key, self._database.clock())

    def all_keys(self) -> Sequence[NamedKey]:
        """Return every key with its hash, revoked and expired ones too, newest first."""
        with self._database.read() as connection:
            return self._select(connection, sa.true())

    def reviewers(self) -> Sequence[Person]:
        """Return everybody with a valid key who may review."""
        now = self._database.clock()
        return [one.person() for one in self.all_keys() if one.valid(now) and one.may(Role.REVIEW)]

    def list(self) -> Sequence[NamedKey]:
        """Return every valid key, newest first. A rotated person has two until the earlier one ends."""
        now = self._database.clock()
        return [one for one in self.all_keys() if one.valid(now)]

    def _insert(self, connection: sa.Connection, person: Person) -> str:
        key_id, key = make_key()
        row = {**person.model_dump(), "roles": " ".join(person.roles), "key_id": key_id, "key_hash": key_hash(key)}
        stored = {name: value for name, value in row.items() if name in t.people.c}
        mine = {"model_name": self._database.model_name, "created_at": self._database.now()}
        connection.execute(t.people.insert().values({**stored, **mine, "expires_at": None, "revoked_at": None}))
        return key

    def _note(self, connection: sa.Connection, by: str, action: str, name: str, key: str, **more: object) -> None:
        self._audit_log.append(connection, by, action, {"name": name, "key_id": key_id_of(key), **more})

    def _known(self, connection: sa.Connection, name: str) -> Sequence[NamedKey]:
        if valid := self._valid(connection, name):
            return valid
        raise UnknownPerson(f"nobody named {name} has a valid key: see `ratchet access list`")

    def _valid(self, connection: sa.Connection, name: str) -> Sequence[NamedKey]:
        now = self._database.clock()
        return [one for one in self._select(connection, t.people.c.name == name) if one.valid(now)]

    def _select(self, connection: sa.Connection, where: sa.ColumnElement[bool]) -> Sequence[NamedKey]:
        query = sa.select(t.people).where(self._database.mine(t.people), where)
        newest_first = query.order_by(t.people.c.created_at.desc(), t.people.c.expires_at.is_(None).desc())
        return [_stored(values(row)) for row in connection.execute(newest_first)]

    def _named(self, name: str) -> sa.ColumnElement[bool]:
        return self._database.mine(t.people) & (t.people.c.name == name)


def _stored(row: dict[str, Any]) -> NamedKey:
    known = [role for role in Role if role.value in row["roles"].split()]  # a later release may have others
    return NamedKey.model_validate({**row, "roles": known})


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"name {name[:64]!r}: at most 64 letters, digits and . _ @ + -, the first a letter or digit")
    if name.lower() in RESERVED:
        raise ValueError(f"name {name!r} is reserved for Ratchet's own entries of the audit log: choose another")
    return name


def _roles(roles: Iterable[Role | str]) -> tuple[Role, ...]:
    known = [role.value for role in Role]
    wanted = {str(role) for role in roles}
    if not wanted or not wanted <= set(known):
        given = ", ".join(sorted(wanted)) or "none"
        raise ValueError(f"roles: at least one of {', '.join(known)}, got {given}")
    return tuple(role for role in Role if role.value in wanted)


def _limit(limit: str | None) -> str | None:
    if limit is not None and not re.fullmatch(LIMIT, limit):
        raise ValueError(f"limit {limit[:40]!r}: write a number and second, minute, hour or day, such as 600/minute")
    return limit
