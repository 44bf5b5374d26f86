"""A damaged champion: named at once with the way out; what a round's process could not say is said for it."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.settings import Settings
from services.checks.champion import damaged, unservable
from services.rounds.failures import ending, sentence
from serving.artifacts import ArtifactStore
from serving.live import LiveModel
from serving.registry.registry import Registry
from tests.support.versions import copied, promote


@pytest.fixture
def named(settings: Settings) -> Settings:
    """The project of the versions that the tests make."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"name": "m"})})


@pytest.fixture
def served(named: Settings, version: Path, tmp_path: Path) -> Iterator[tuple[Registry, ArtifactStore]]:
    """Three versions that served, a the first and c the champion."""
    registry = Registry(named.registry_url, "m")
    registry.migrate()
    store = ArtifactStore(named.location(named.artifacts.url))
    for name in ("a", "b", "c"):
        promote(registry, store, copied(version, tmp_path / name, model_version=name))
    yield registry, store
    registry.close()


def damage(settings: Settings, registry: Registry, name: str, file: str = "model.onnx") -> Path:
    """Change a byte of a stored file."""
    path = Path(settings.location(settings.artifacts.url)) / registry.version(name).digest / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_sound_champion_is_nothing_to_speak_of(named: Settings, served: tuple[Registry, ArtifactStore]) -> None:
    assert unservable(named, served[0]) is None
    assert damaged(named, served[0]) == []


def test_a_damaged_champion_is_named_with_its_file_and_a_sound_earlier_version(
    named: Settings, served: tuple[Registry, ArtifactStore]
) -> None:
    registry, _ = served
    path = damage(named, registry, "c")
    digest = path.parent.name
    assert unservable(named, registry) == (
        f"the champion c cannot be served: artifacts/{digest}/model.onnx: changed; "
        "`ratchet model rollback b` serves b, whose files are sound"
    )
    damage(named, registry, "b", "manifest.json")
    assert "`ratchet model rollback a` serves a" in (unservable(named, registry) or "")
    damage(named, registry, "a").unlink()
    assert (unservable(named, registry) or "").endswith(
        "no earlier version is sound: put back the artefacts of a backup"
    )
    assert [line.partition(":")[0] for line in damaged(named, registry)] == ["c", "b", "a"]
    assert damaged(named, registry)[2].endswith("model.onnx: missing")


def test_a_sound_copy_in_the_cache_serves_and_the_damage_is_still_named(
    named: Settings, served: tuple[Registry, ArtifactStore]
) -> None:
    registry, store = served
    store.fetch(registry.version("c").digest, named.path(named.artifacts.cache))
    damage(named, registry, "c")
    assert unservable(named, registry) is None
    assert [line.partition(":")[0] for line in damaged(named, registry)] == ["c"]


def test_a_worker_without_a_version_does_not_speak_of_an_old_one(
    named: Settings, served: tuple[Registry, ArtifactStore], caplog: pytest.LogCaptureFixture
) -> None:
    registry, store = served
    damage(named, registry, "c")
    live = LiveModel(registry, store, named.path(named.artifacts.cache), threads=1, poll_seconds=9)
    live.follow()
    assert live.current() is None
    assert "model.onnx" in caplog.text
    assert "no other version is loaded: nothing is served" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_no_memory_is_called_that(error: Exception) -> None:
    assert sentence(error).startswith("out of memory (")
    wrapped = ImportError("cannot import name 'nn'")
    wrapped.__cause__ = error
    assert sentence(wrapped).startswith("out of memory (ImportError: cannot import name 'nn')")


def test_other_errors_are_called_what_they_are() -> None:
    assert sentence(ImportError("no module named x")) == "ImportError: no module named x"


def test_a_killed_process_is_said_to_be_most_likely_out_of_memory() -> None:
    assert (ending(-9) or "").startswith("killed, most likely out of memory")
    assert ending(-15) == "ended by SIGTERM"
    assert (ending(0), ending(1), ending(None)) == (None, None, None)
