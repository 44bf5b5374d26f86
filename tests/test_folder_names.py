"""A project lies in a folder of any name: paths are never URLs, patterns or texts to decode."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from pipelines.feature_store.event_log import EventLog
from pipelines.feature_store.event_log_files import UnusableFolder
from pipelines.feature_store.store import FeatureStore
from pipelines.training_round import run_round
from schemas.records import RoundState
from schemas.settings import Settings
from services.projects import create_project, open_project
from serving.artifacts import ArtifactStore
from serving.messaging.outbox_store import claim, make_table, open_disk, waiting, write
from serving.messaging.publisher import Outgoing
from serving.model_directory import sha256
from serving.registry.registry import Registry
from tests.support.fakes import TOPICS, toy_rows, write_rows
from tests.support.stored_rows import append, prediction_row, said

NAMES = [
    f" my shop {unicodedata.normalize('NFD', 'größe')} 店 🛒 ",
    "a#b?c%d{e}[f]*g'h\"i",
    "[ab]",
    "**",
    "-x",
    "~",
    "::file:",
    "100%",
    "$HOME&;|!(b)=c,d@e<f>",
    "123",
    "x" * 200,
]
UNUSABLE = ["a\\b", "a%20b", "a\nb"]


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("seed") / "seed.csv", toy_rows(30, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_every_store_of_a_project_works_in_a_folder_of_this_name(
    name: str, seed: Path, version: Path, tmp_path: Path
) -> None:
    create_project(tmp_path / name, seed=seed, reference=None)
    settings = open_project(tmp_path / name / "ratchet.toml")
    features = FeatureStore(settings)
    append(features, "predictions", [prediction_row(1)])
    append(features, "feedback", [said("f1", 1, "b", 0)])
    assert features.log.positions("feedback") == {"F/0": 0}
    assert features.log.compact("feedback")
    assert [row.text for row in FeatureStore(settings).labelled_feedback()] == ["text 1"]
    store = ArtifactStore(settings.location(settings.artifacts.url))
    digest = store.put(version)
    assert sha256(store.fetch(digest, settings.path("state/cache")) / "manifest.json") == digest
    path, lock = claim(settings.path(settings.serving.outbox))
    disk = open_disk(path, "FULL")
    make_table(disk)
    write(disk, [Outgoing("t", b"k", b"v")])
    assert waiting(settings.path(settings.serving.outbox)) == 1
    disk.close()
    lock.close()
    assert {path.name for path in tmp_path.iterdir()} == {name}  # nothing was made beside it


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_name_that_delta_cannot_open_is_refused_at_init_in_one_line(name: str, seed: Path, tmp_path: Path) -> None:
    with pytest.raises(UnusableFolder, match=r"rename the folder, or set feature_store\.event_log"):
        create_project(tmp_path / name, seed=seed, reference=None)
    assert not (tmp_path / name).exists()
    with pytest.raises(UnusableFolder, match="rename the folder"):
        EventLog(str(tmp_path / name / "events"))


def test_a_round_promotes_in_such_a_folder(full_precision: Settings) -> None:
    settings = full_precision
    root = settings.root / "a[b] größe 100% #1? {x} *'\"店"
    root.mkdir()
    shutil.move(settings.root / "data", root / "data")
    create_project(root / "made", seed=root / "data/seed.csv", reference=None)
    for file in ("policy.toml", "feature_store.yaml", "keys.env"):
        shutil.copyfile(root / "made" / file, root / file)
    settings = settings.model_copy(update={"root": root})
    registry = Registry(settings.registry_url, settings.model.name)
    registry.migrate()
    registry.set_labels(TOPICS)
    features = FeatureStore(settings)
    claimed = registry.claim_round(reason="test", cut=features.current_cut(), token=None)
    assert claimed is not None
    done = run_round(
        claimed.round_id,
        settings=settings,
        registry=registry,
        store=ArtifactStore(settings.location(settings.artifacts.url)),
        features=features,
        token=None,
        progress=lambda *_: None,
    )
    registry.close()
    assert done.state is RoundState.PROMOTED, done.detail
