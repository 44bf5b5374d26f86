"""Serving's database role on Postgres: it reads what a worker needs, writes heartbeats, and is denied everything else."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry, RegistryUnavailable
from serving.registry.safeguards.database_role import READABLE, NoRoles, grant_serving
from serving.registry.safeguards.marker import check, keep
from serving.registry.tables import metadata
from tests.support.registries import add_versions, postgres_schema, statement

SERVING_READS = {*READABLE, "heartbeats"}
ALLOWED = {(table, "SELECT") for table in SERVING_READS} | {("heartbeats", "INSERT"), ("heartbeats", "DELETE")}


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Registry, str]]:
    """A filled registry of its owner, and the URL of serving's role."""
    role = f"ratchet_serving_{uuid.uuid4().hex[:8]}"
    with postgres_schema() as address, contextlib.closing(Registry(address, "m")) as owner:
        owner.migrate()
        add_versions(owner, "v1")
        owner.promote("v1", expected=None, token=None, actor="gates")
        owner.set_labels(["a"])
        owner.people.add("shop", ["predict"])
        password = grant_serving(owner.database, role)
        assert password is not None
        assert grant_serving(owner.database, role) is None, "again after an upgrade"
        restricted = sa.make_url(address).set(username=role, password=password)
        try:
            yield owner, restricted.render_as_string(hide_password=False)
        finally:
            statement(address, f"DROP OWNED BY {role}")
            statement(address, f"DROP ROLE {role}")


@pytest.mark.postgres
def test_a_worker_does_its_work_with_the_role(site: tuple[Registry, str], tmp_path: Path) -> None:
    owner, url = site
    store = ArtifactStore(str(tmp_path))
    keep(owner, store)
    with contextlib.closing(Registry(url, "m")) as serving:
        champion = serving.champion()
        assert champion is not None
        assert champion.model_version == "v1"
        assert serving.exists()
        check(serving, store)
        assert serving.label_map() is not None
        assert serving.positions() == {}
        assert serving.ingestion() == []
        assert [key.name for key in serving.people.all_keys()] == ["shop"]
        assert serving.signed_since() is None
        for _ in range(2):
            serving.heartbeat("1", "host", model_version="v1", generation=1, error=None)
    assert [worker.model_version for worker in owner.workers()] == ["v1"]


@pytest.mark.postgres
@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"])
@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_the_role_has_each_right_on_each_table_or_is_denied(site: tuple[Registry, str], table: str, right: str) -> None:
    column = metadata.tables[table].columns.keys()[-1]
    queries = {
        "SELECT": "SELECT * FROM {table}",
        "INSERT": "INSERT INTO {table} SELECT * FROM {table} WHERE false",
        "UPDATE": "UPDATE {table} SET {column} = {column} WHERE false",
        "DELETE": "DELETE FROM {table} WHERE false",
        "TRUNCATE": "TRUNCATE {table}",
    }
    query = queries[right].format(table=table, column=column)
    engine = sa.create_engine(site[1])
    try:
        with engine.connect() as connection:
            if (table, right) in ALLOWED:
                connection.execute(sa.text(query))
            else:
                with pytest.raises(exc.ProgrammingError, match="permission denied"):
                    connection.execute(sa.text(query))
            connection.rollback()
    finally:
        engine.dispose()


@pytest.mark.postgres
def test_a_worker_that_was_taken_over_decides_nothing(site: tuple[Registry, str]) -> None:
    with contextlib.closing(Registry(site[1], "m")) as serving:
        for act in (
            lambda: serving.promote("v1", expected="v1", token=None, actor="eve"),
            lambda: serving.people.add("eve", ["admin"]),
            lambda: serving.audit("eve", "look", {}),
            serving.audit_rows,
            lambda: serving.set_labels(["b"]),
            lambda: serving.claim_round(reason="eve", cut={}, token=None),
        ):
            with pytest.raises(RegistryUnavailable, match="permission denied"):
                act()


def test_sqlite_has_no_roles_and_a_name_is_checked(tmp_path: Path) -> None:
    with contextlib.closing(Registry(f"sqlite:///{tmp_path}/r.db", "m")) as registry:
        registry.migrate()
        with pytest.raises(NoRoles, match="SQLite"):
            grant_serving(registry.database, "serving")


@pytest.mark.postgres
@pytest.mark.parametrize("role", ["", "a b", "x; DROP TABLE people", "Serving", "1a"])
def test_a_name_that_postgres_would_not_take_is_refused(site: tuple[Registry, str], role: str) -> None:
    with pytest.raises(NoRoles, match="lower-case letters"):
        grant_serving(site[0].database, role)
