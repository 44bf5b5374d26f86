"""Schema and outages: migrations make the tables, and what fails has one name."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from serving.registry import database
from serving.registry.registry import Registry, RegistryUnavailable, UnknownRound, UnknownSchema
from serving.registry.tables import metadata
from tests.support import registries
from tests.support.registries import add_versions, begin, postgres_schema, statement

url, clock, registry = registries.url, registries.clock, registries.registry


def test_migrations_make_the_tables_that_the_code_uses(registry: Registry, url: str) -> None:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        found = {index["name"] for name in metadata.tables for index in sa.inspect(connection).get_indexes(name)}
    engine.dispose()
    assert {"one_unfinished_round", "one_promotion_by_round"} <= found


def test_migrating_again_changes_nothing(registry: Registry) -> None:
    registry.set_labels(["a"])
    registry.migrate()
    assert registry.active_labels() == ["a"]


def test_a_schema_of_a_later_release_is_refused(registry: Registry, url: str) -> None:
    statement(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UnknownSchema, match="9999"):
        registry.migrate()


@pytest.mark.parametrize(
    "bad", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "postgresql+psycopg2://x/y"]
)
def test_a_url_that_is_no_registry_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"registry\.url"):
        Registry(bad, "m")


def test_models_share_a_database_and_see_nothing_of_each_other(registry: Registry, url: str) -> None:
    with contextlib.closing(Registry(url, "other")) as other:
        for one in (registry, other):
            add_versions(one, "v1")
            assert one.promote("v1", expected=None, token=None, actor="me").generation == 1
            one.set_labels([f"of {one.model_name}"])
            assert one.acquire_lease("scheduler", "me", 10) == 1
            one.record_positions({"t/0": len(one.model_name)})
            one.record_sides({"k": one.model_name})
            one.heartbeat("1", "host", model_version="v1", generation=1, error=None)
            begin(one)
        for one in (registry, other):
            assert len(one.versions()) == len(one.promotions()) == len(one.rounds()) == len(one.audit_rows()) == 1
            assert one.active_labels() == [f"of {one.model_name}"]
            assert one.positions() == {"t/0": len(one.model_name)}
            assert one.sides(["k"]) == {"k": one.model_name}
        with pytest.raises(UnknownRound):
            other.round(registry.rounds()[0].round_id)


def test_before_it_is_migrated_the_registry_is_unavailable(url: str) -> None:
    with contextlib.closing(Registry(url, "m")) as opened:
        with pytest.raises(RegistryUnavailable):
            opened.champion()
        with pytest.raises(ConnectionError):
            opened.audit("me", "x", {})
        opened.migrate()
        assert opened.champion() is None


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(RegistryUnavailable, match="not a database"):
        Registry(f"sqlite:///{tmp_path}/registry.db", "m").champion()
    with pytest.raises(RegistryUnavailable):
        Registry(f"sqlite:///{tmp_path}", "m").champion()
    with pytest.raises(RegistryUnavailable, match="folder"):
        Registry(f"sqlite:///{tmp_path}/registry.db/x.db", "m")


def test_a_writer_that_never_ends_is_an_outage_to_others_and_readers_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    with (
        contextlib.closing(Registry(f"sqlite:///{tmp_path}/registry.db", "m")) as opened,
        contextlib.closing(sqlite3.connect(tmp_path / "registry.db", isolation_level=None)) as hung,
    ):
        opened.migrate()
        hung.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryUnavailable, match="locked"):
            opened.audit("me", "x", {})
        assert opened.champion() is None
        hung.execute("ROLLBACK")
        opened.audit("me", "x", {})


@pytest.mark.postgres
def test_a_server_that_drops_us_is_an_outage_and_the_next_call_connects_again() -> None:
    with postgres_schema() as url, contextlib.closing(Registry(url, "m")) as opened:
        opened.migrate()

        def dropped_within_a_transaction() -> None:
            with opened.database.write() as connection:
                ours = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
                statement(url, "SELECT pg_terminate_backend(:pid)", pid=ours)
                connection.execute(sa.text("SELECT 1"))

        with opened.database.write() as connection:
            ours = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        statement(url, "SELECT pg_terminate_backend(:pid)", pid=ours)
        assert opened.champion() is None  # the pool asks before it lends

        with pytest.raises(RegistryUnavailable):
            dropped_within_a_transaction()
        opened.audit("me", "x", {})


@pytest.mark.postgres
def test_a_lock_that_is_never_freed_on_postgres_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    with postgres_schema() as url, contextlib.closing(Registry(url, "m")) as opened:
        opened.migrate()
        with opened.database.write(), pytest.raises(RegistryUnavailable, match="lock timeout"):
            opened.audit("me", "x", {})


def test_a_server_that_is_not_there_is_an_outage() -> None:
    with contextlib.closing(Registry("postgresql+psycopg://nobody:s3cret@127.0.0.1:1/none", "m")) as opened:
        with pytest.raises(RegistryUnavailable) as refused:
            opened.champion()
        assert "s3cret" not in str(refused.value)
