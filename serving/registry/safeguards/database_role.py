"""Serving's database role: a Postgres user that reads what serving needs and writes heartbeats, nothing else.

Turns a role's name into grants on the registry's tables. `ratchet access database-role` calls it, again after an upgrade that
adds tables. Whoever takes over a serving worker, which faces the network, then cannot promote a version, change a person's roles
or write the audit log. SQLite has no roles: there, the file's mode is the only protection.
"""

import re
import secrets

import sqlalchemy as sa

from serving.registry.database import Database

NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# What a worker reads: the champion and its version, labels, the hashes of keys, and how far events are stored.
READABLE = ("promotions", "versions", "labels", "positions", "ingestion", "people", "signed_ids")
# It compares the audit log with the marker beside the artefacts by number and hash, and sees nobody's reasons.
READABLE_COLUMNS = {"audit": ("model_name", "sequence", "hash")}
WRITABLE = {"heartbeats": "SELECT, INSERT, DELETE"}


class NoRoles(ValueError):
    """The registry is no Postgres database, or the role's name cannot be one."""


def grant_serving(database: Database, role: str) -> str | None:
    """Give a role serving's rights and no other on the registry's tables; create it first if there is none.

    Returns:
        The new role's password, which is stored nowhere; None if the role existed.

    Raises:
        NoRoles: the registry is SQLite, or the name is not one of Postgres.
        RegistryUnavailable: the database cannot be reached, or its user may not grant.

    """
    if not database.is_postgres:
        raise NoRoles("registry.url is SQLite, which has no roles: use Postgres, or protect the file by its mode")
    if not NAME.fullmatch(role):
        raise NoRoles(f"role {role[:64]!r}: lower-case letters, digits and _, the first no digit, at most 63")
    with database.write("migrations") as connection:
        known = connection.execute(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}).scalar()
        password = None if known else secrets.token_urlsafe(24)
        if password:
            connection.execute(sa.text(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'"))
        schema = connection.execute(sa.text("SELECT quote_ident(current_schema())")).scalar()
        for statement in _grants(role, str(schema)):
            connection.execute(sa.text(statement))
        return password


def _grants(role: str, schema: str) -> list[str]:
    """Return the statements. The names are a checked role, a quoted schema and this module's tables: no text of a caller."""
    columns = READABLE_COLUMNS.items()
    return [
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        *(f"GRANT SELECT ON {schema}.{table} TO {role}" for table in READABLE),
        *(f"GRANT SELECT ({', '.join(names)}) ON {schema}.{table} TO {role}" for table, names in columns),
        *(f"GRANT {rights} ON {schema}.{table} TO {role}" for table, rights in WRITABLE.items()),
    ]
