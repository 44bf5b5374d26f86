"""Hot swap in one worker: it follows, keeps the last version warm, refuses what is broken, and survives a lost registry."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.artifacts import ArtifactStore
from serving.inference.encoder_runtime import Runtime
from serving.live import LiveModel
from serving.registry.registry import Registry, RegistryUnavailable
from tests.support.versions import copied, promote, rewritten, with_golden


class Failing(ArtifactStore):
    """A store from which one version cannot be had: asking for it raises what loading a version may raise."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.raises: dict[str, Exception] = {}
        self.asked: list[str] = []

    def fetch(self, digest: str, cache: Path) -> Path:
        self.asked.append(digest)
        if digest in self.raises:
            raise self.raises[digest]
        return super().fetch(digest, cache)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry(f"sqlite:///{tmp_path}/registry.db", "m")
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def live(registry: Registry, store: ArtifactStore, tmp_path: Path) -> LiveModel:
    return LiveModel(registry, store, tmp_path / "cache", threads=1, poll_seconds=0.05)


def test_it_follows_and_rolls_back_to_the_version_it_kept_warm(
    live: LiveModel, registry: Registry, store: ArtifactStore, version: Path, tmp_path: Path
) -> None:
    promote(registry, store, version)
    live.follow()
    first = live.current()
    assert first is not None
    promote(registry, store, copied(version, tmp_path / "b", model_version="b"))
    live.follow()
    second = live.current()
    assert second is not None
    assert (second[0].version, second[1]) == ("b", 2)
    registry.promote(first[0].version, expected="b", token=None, actor="a person")
    live.follow()
    third = live.current()
    assert third is not None
    assert third[0] is first[0], "loaded again"
    assert third[1] == 3
    assert [(w.model_version, w.generation, w.error) for w in registry.workers(60)] == [(first[0].version, 3, None)]


def test_new_labels_and_another_length_swap_the_same_way(
    live: LiveModel, registry: Registry, store: ArtifactStore, version: Path, wider_version: Path, tmp_path: Path
) -> None:
    promote(registry, store, version)
    live.follow()
    promote(registry, store, copied(wider_version, tmp_path / "w", max_length=16))
    live.follow()
    current = live.current()
    assert current is not None
    assert isinstance(current[0], Runtime)
    assert len(current[0].labels) == 4
    assert len(current[0].encode(["word " * 100])[0]) == 16
    assert current[0].probabilities(["the oven"]).shape == (1, 4)


def test_a_broken_artefact_is_refused_and_reported_and_the_old_one_goes_on(
    live: LiveModel, registry: Registry, store: ArtifactStore, version: Path, tmp_path: Path
) -> None:
    promote(registry, store, version)
    live.follow()
    before = live.current()
    wrong = with_golden(copied(version, tmp_path / "wrong", model_version="wrong"), [[1.0, 0.0, 0.0]] * 3)
    promote(registry, store, wrong)
    live.follow()
    assert live.current() == before
    [worker] = registry.workers(60)
    assert worker.generation == 1
    assert worker.error is not None
    assert "golden outputs differ" in worker.error

    damaged = copied(version, tmp_path / "damaged", model_version="damaged")
    promote(registry, store, damaged)
    champion = registry.champion()
    assert champion is not None
    model = tmp_path / "store" / champion.digest / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    live.follow()
    assert live.current() == before, "what was refused once is not waited for"
    [worker] = registry.workers(60)
    assert worker.error is not None
    assert "model.onnx" in worker.error

    promote(registry, store, copied(version, tmp_path / "good", model_version="good"))
    live.follow()
    [worker] = registry.workers(60)
    assert (worker.model_version, worker.generation, worker.error) == ("good", 4, None)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_its_library_cannot_read_refuses_the_version(
    live: LiveModel, registry: Registry, store: ArtifactStore, version: Path, tmp_path: Path, name: str
) -> None:
    promote(registry, store, version)
    live.follow()
    before = live.current()
    unreadable = copied(version, tmp_path / "unreadable", model_version="unreadable")
    (unreadable / name).write_bytes(b"neither a graph nor a tokenizer")
    promote(registry, store, rewritten(unreadable))
    live.follow()
    assert live.current() == before
    [worker] = registry.workers(60)
    assert worker.generation == 1
    assert worker.error is not None
    assert worker.error.startswith("unreadable: ")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("no such operator"), "no such operator"),
        (Exception("data did not match any variant"), "data did not match any variant"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["RuntimeError", "Exception", "MemoryError"],
)
def test_whatever_loading_raises_the_version_is_refused_for_a_while_and_the_last_good_one_serves(
    registry: Registry, version: Path, tmp_path: Path, error: Exception, told: str
) -> None:
    store, cache = Failing(str(tmp_path / "store")), tmp_path / "cache"
    promote(registry, store, version)
    running = LiveModel(registry, store, cache, threads=1, poll_seconds=60)
    running.follow()
    before = running.current()
    promote(registry, store, copied(version, tmp_path / "b", model_version="b"))
    champion = registry.champion()
    assert champion is not None
    store.raises[champion.digest] = error
    for _ in range(3):
        running.follow()
    assert running.current() == before
    assert store.asked.count(champion.digest) == 1, "tried again at once"
    [worker] = registry.workers(60)
    assert (worker.generation, worker.error) == (1, f"b: {told}")

    starting = LiveModel(registry, store, cache, threads=1, poll_seconds=60)
    starting.start()
    starting.close()
    assert store.asked.count(champion.digest) == 2
    current = starting.current()
    assert current is not None
    assert current[1] == 1


def test_a_lost_registry_is_served_from_the_cache_and_caught_up_with(
    registry: Registry, store: ArtifactStore, version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    promote(registry, store, version)
    LiveModel(registry, store, cache, threads=1, poll_seconds=9).follow()

    def away(*_args: object, **_options: object) -> None:
        raise RegistryUnavailable("the registry is away")

    restarted = LiveModel(registry, store, cache, threads=1, poll_seconds=9)
    with monkeypatch.context() as lost:
        lost.setattr(registry, "champion", away)
        lost.setattr(registry, "heartbeat", away)
        lost.setattr(registry, "active_labels", away)
        restarted.start()
        restarted.close()
        current = restarted.current()
        assert current is not None
        assert current[1] == 1
        restarted.follow()
        assert restarted.current() == current
    promote(registry, store, copied(version, tmp_path / "b", model_version="b"))
    restarted.follow()
    current = restarted.current()
    assert current is not None
    assert current[1] == 2
