"""Comparisons of two versions: made once for the rows as they are, and made again after a failure or for changed rows."""

from pathlib import Path

import pytest

from pipelines.dataset.split import cluster_key
from schemas.settings import Settings
from services.console.comparison import Compared, Comparisons
from services.console.project import Project
from serving.artifacts import ArtifactStore
from serving.http.access import read_keys
from serving.model_directory import read_manifest
from serving.registry.registry import Registry
from tests.support.fakes import toy_rows, wait_until, write_rows
from tests.support.versions import copied

ROWS = toy_rows(60, seed=2)


@pytest.fixture
def project(settings: Settings, registry: Registry, version: Path, tmp_path: Path) -> Project:
    """A project of the versions a and b, whose reference rows judge."""
    store = ArtifactStore(settings.location(settings.artifacts.url))
    for name in ("a", "b"):
        folder = copied(version, tmp_path / name, model_version=name, model_name=settings.model.name)
        registry.register_version(read_manifest(folder), store.put(folder), servable=True)
    write_rows(settings.path("data/reference.csv"), ROWS)
    registry.record_sides({cluster_key(settings.model.name, text): "test" for text, _ in ROWS})
    return Project(settings, settings.root / "ratchet.toml", registry, read_keys(settings.path("keys.env")))


@pytest.fixture
def comparisons(project: Project) -> Comparisons:
    return Comparisons(project)


def compared(comparisons: Comparisons) -> Compared:
    """Ask for the comparison until it is there."""
    made: list[Compared] = []

    def is_there() -> bool:
        done = comparisons.of("a", "b")
        made.extend([done] if done else [])
        return bool(made)

    wait_until(is_there)
    return made[0]


def test_a_failure_is_shown_once_and_then_tried_again(comparisons: Comparisons, settings: Settings) -> None:
    artifacts = settings.path("state/artifacts")
    away = artifacts.rename(artifacts.with_name("away"))
    failed = compared(comparisons)
    assert failed.error
    assert failed.n == 0
    away.rename(artifacts)
    assert comparisons.of("a", "b") is None, "the failure is no longer shown"
    done = compared(comparisons)
    assert (done.error, done.n) == (None, len(ROWS))
    assert comparisons.of("a", "b") == done


def test_changed_rows_are_compared_anew(comparisons: Comparisons, settings: Settings) -> None:
    assert compared(comparisons).n == len(ROWS)
    write_rows(settings.path("data/reference.csv"), ROWS[:30])
    assert comparisons.of("a", "b") is None
    assert compared(comparisons).n == 30
