"""Schema and outages: migrations make the tables, and what fails has one name."""

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from serving.registry.database import MIGRATIONS
from serving.registry.registry import Registry, RegistryUnavailable, UnknownRound, UnknownSchema
from serving.registry.tables import metadata
from tests.support import registries
from tests.support.disks import read_only
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


def test_versions_of_before_get_the_state_that_their_rounds_and_promotions_tell(url: str) -> None:
    Registry(url, "m").close()  # makes the folder
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003_ingestion")
        for n in range(1, 7):
            insert = "INSERT INTO versions VALUES ('m', :version, :n, 'd', NULL, :round_id, '2026', :servable, NULL)"
            values = {"version": f"v{n}", "n": n, "round_id": f"r{n}", "servable": n < 4}
            connection.execute(sa.text(insert), values)
        for n, (version, round_id) in enumerate([("v1", "r1"), ("v2", "r2"), ("v1", None), ("v3", "r3")], 1):
            values = {"generation": n, "version": version, "round_id": round_id}
            insert = "INSERT INTO promotions VALUES ('m', :generation, :version, 'd', '2026', :round_id, 'gates')"
            connection.execute(sa.text(insert), values)
        ended = ["promoted", "promoted", "promoted", "rejected", "awaiting approval", "insufficient evidence"]
        for n, state in enumerate(ended, 1):
            values = {"n": n, "id": f"r{n}", "state": state, "record": json.dumps({"candidate_version": f"v{n}"})}
            connection.execute(sa.text("INSERT INTO rounds VALUES (:id, 'm', :n, :state, :record)"), values)
    engine.dispose()
    with contextlib.closing(Registry(url, "m")) as upgraded, contextlib.closing(Registry(url, "new")) as later:
        upgraded.upgrade()
        assert {version.model_version: version.state.value for version in upgraded.versions()} == {
            "v1": "retired",
            "v2": "rolled back",
            "v3": "champion",
            "v4": "rejected",
            "v5": "awaiting approval",
            "v6": "candidate",
        }
        assert upgraded.signed_since() is not None, "predictions were made before ids had a checksum"
        assert later.signed_since() is None


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


def test_a_writer_that_never_ends_is_an_outage_to_others_and_readers_read_on(tmp_path: Path) -> None:
    with (
        contextlib.closing(Registry(f"sqlite:///{tmp_path}/registry.db", "m", busy_s=0.2)) as opened,
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
def test_a_lock_that_is_never_freed_on_postgres_is_an_outage() -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres_schema())
        stack.enter_context(contextlib.closing(Registry(url, "m"))).migrate()  # in its own time: it locks more
        opened = stack.enter_context(contextlib.closing(Registry(url, "m", busy_s=0.2)))
        with opened.database.write(), pytest.raises(RegistryUnavailable, match="lock timeout"):
            opened.audit("me", "x", {})


def test_a_server_that_is_not_there_is_an_outage() -> None:
    with contextlib.closing(Registry("postgresql+psycopg://nobody:s3cret@127.0.0.1:1/none", "m")) as opened:
        with pytest.raises(RegistryUnavailable) as refused:
            opened.champion()
        assert "s3cret" not in str(refused.value)


def test_a_file_that_was_deleted_or_replaced_is_noticed_by_open_registries(tmp_path: Path) -> None:
    file, backup = tmp_path / "registry.db", tmp_path / "backup.db"
    with contextlib.closing(Registry(f"sqlite:///{file}", "m")) as opened:
        opened.migrate()
        opened.set_labels(["a"])
        with contextlib.closing(sqlite3.connect(file)) as here, contextlib.closing(sqlite3.connect(backup)) as there:
            here.backup(there)
        opened.set_labels(["a", "b"])
        for name in ("registry.db", "registry.db-wal", "registry.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        expected = "registry.db is missing: restore the registry from its newest backup, or accept a new one"
        for use in (opened.active_labels, lambda: opened.set_labels(["c"]), opened.champion):
            with pytest.raises(RegistryUnavailable, match=expected):
                use()
        assert not file.exists(), "nothing creates an empty one"
        backup.rename(file)
        assert opened.active_labels() == ["a"], "the restored one is read, not the deleted one"
        opened.set_labels(["a", "c"])
    with contextlib.closing(Registry(f"sqlite:///{file}", "m")) as again:
        assert again.active_labels() == ["a", "c"]


@pytest.mark.root
def test_a_registry_that_was_opened_on_a_read_only_disk_is_written_once_the_disk_is(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    url = f"sqlite:///{folder}/registry.db"
    with contextlib.closing(Registry(url, "m")) as other, contextlib.closing(Registry(url, "m")) as registry:
        other.migrate()  # it keeps the WAL's files, without which nobody could read there
        with read_only(folder):
            assert registry.champion() is None
            with pytest.raises(RegistryUnavailable, match="readonly"):
                registry.heartbeat("1", "here", model_version=None, generation=0, error=None)
        registry.heartbeat("1", "here", model_version=None, generation=0, error=None)
        assert [worker.worker for worker in registry.workers(60)] == ["1"]
