"""A lost, replaced, older or rewritten registry is noticed by the marker beside the artefacts."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from serving.artifacts import ArtifactStore
from serving.live import LiveModel
from serving.registry.registry import Registry, RegistryUnavailable
from serving.registry.safeguards.marker import RegistryLost, accept, check, keep
from serving.registry.tables import metadata
from tests.support import registries
from tests.support.registries import Clock, add_versions, postgres_schema, statement
from tests.support.versions import copied, promote

url, clock, registry = registries.url, registries.clock, registries.registry


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "a [store]"))


@pytest.fixture
def another(url: str, tmp_path: Path) -> Iterator[str]:
    """Another empty database of the same kind."""
    if url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path}/new.db"
    else:
        with postgres_schema() as address:
            yield address


@pytest.fixture
def promoted(registry: Registry, store: ArtifactStore) -> Registry:
    """A registry of two generations whose marker is written."""
    add_versions(registry, "v1", "v2")
    registry.promote("v1", expected=None, token=None, actor="ada")
    registry.promote("v2", expected="v1", token=None, actor="ada")
    keep(registry, store)
    return registry


def test_a_registry_agrees_with_its_marker_and_may_be_ahead_of_it(promoted: Registry, store: ArtifactStore) -> None:
    check(promoted, store)
    promoted.promote("v1", expected="v2", token=None, actor="ada")
    check(promoted, store)
    keep(promoted, store)


def test_without_a_marker_nothing_is_compared(registry: Registry, store: ArtifactStore) -> None:
    check(registry, store)
    accept(registry, store)
    check(registry, store)


def test_another_model_of_the_same_store_has_a_marker_of_its_own(
    promoted: Registry, store: ArtifactStore, url: str
) -> None:
    with contextlib.closing(Registry(url, "other")) as other:
        check(other, store)


LOSSES = {
    "DELETE FROM promotions": "has no champion, and generation 2 was promoted",
    "DELETE FROM promotions WHERE generation = 2": "is at generation 1, and generation 2 was promoted",
    "DELETE FROM audit": "the audit log of m has 0 rows, and had 2",
    "DELETE FROM audit WHERE sequence = 2": "the audit log of m has 1 rows, and had 2",
    "UPDATE audit SET hash = 'x' WHERE sequence = 1": "the registry is not the one",
    "UPDATE audit SET hash = 'x' WHERE sequence = 2": "was rewritten up to row 2",
}


@pytest.mark.parametrize("text", LOSSES)
def test_what_a_registry_lost_is_said_with_the_way_out(
    text: str, promoted: Registry, store: ArtifactStore, url: str
) -> None:
    statement(url, text)
    with pytest.raises(RegistryLost, match=LOSSES[text]) as refused:
        check(promoted, store)
    assert "restore the registry from its newest backup, or accept this one with `ratchet up --new-registry`" in str(
        refused.value
    )
    assert "\n" not in str(refused.value)
    with pytest.raises(RegistryLost):
        keep(promoted, store)  # a promotion does not hide it
    accept(promoted, store)
    check(promoted, store)


def test_a_registry_that_is_missing_is_refused_and_not_created(
    promoted: Registry, store: ArtifactStore, url: str, tmp_path: Path
) -> None:
    promoted.close()
    file = tmp_path / "state/100 %/registry.db"
    if url.startswith("sqlite"):
        file.unlink()
    else:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            metadata.drop_all(connection)
            connection.execute(sa.text("DROP TABLE alembic_version"))
        engine.dispose()
    with contextlib.closing(Registry(url, "m")) as opened:
        assert not opened.exists()
        with pytest.raises(
            RegistryLost, match="the registry is missing or empty, and generation 2 was promoted, according"
        ):
            check(opened, store)
        with pytest.raises(RegistryUnavailable):
            opened.champion()
        assert not file.exists()
        opened.migrate()
        assert opened.exists()
        with pytest.raises(RegistryLost, match="lost or an older copy: it has no champion"):
            check(opened, store)


def test_a_registry_made_anew_is_noticed_even_at_the_same_generation(
    promoted: Registry, store: ArtifactStore, another: str, clock: Clock
) -> None:
    with contextlib.closing(Registry(another, "m", clock=clock)) as new:
        new.migrate()
        with pytest.raises(RegistryLost, match="lost or an older copy: it has no champion"):
            check(new, store)
        add_versions(new, "w1", "w2")
        new.promote("w1", expected=None, token=None, actor="eve")
        new.promote("w2", expected="w1", token=None, actor="eve")
        with pytest.raises(RegistryLost, match="not the one that promoted generation 2"):
            check(new, store)


def test_an_emptied_audit_log_is_no_whole_one_even_without_a_marker(registry: Registry, url: str) -> None:
    add_versions(registry, "v1")
    registry.promote("v1", expected=None, token=None, actor="ada")
    assert registry.verify_audit() == []
    statement(url, "DELETE FROM audit")
    assert registry.verify_audit() == ["audit log of m: it records 0 of 1 promotions"]


def test_serving_goes_on_with_its_version_when_the_registry_is_another(
    registry: Registry, store: ArtifactStore, version: Path, another: str, tmp_path: Path
) -> None:
    live = LiveModel(registry, store, tmp_path / "cache", threads=1, poll_seconds=60)
    promote(registry, store, version)
    promote(registry, store, copied(version, tmp_path / "b", model_version="b"))
    keep(registry, store)
    live.follow()
    with contextlib.closing(Registry(another, "m")) as new:
        new.migrate()
        promote(new, store, version)
        again = LiveModel(new, store, tmp_path / "cache", threads=1, poll_seconds=60)
        again.start()
        again.close()
        current = again.current()
        assert current is not None
        assert (current[0].version, current[1]) == ("b", 2)
        (worker,) = new.workers(60)
        assert "the registry is lost or an older copy: it is at generation 1" in str(worker.error)
