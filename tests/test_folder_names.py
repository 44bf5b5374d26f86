"""A project lies in a folder of any name: paths are never URLs, patterns or texts to decode."""

import unicodedata
from pathlib import Path

import pytest

from pipelines.feature_store.event_log import EventLog
from pipelines.feature_store.event_log_files import UnusableFolder
from pipelines.feature_store.store import FeatureStore
from pipelines.round_inputs import round_folder
from schemas.records import RoundState
from services.projects import create_project, open_project
from serving.artifacts import ArtifactStore
from serving.inference.loading import open_version
from serving.messaging.outbox_store import claim, make_table, open_disk, waiting, write
from serving.messaging.publisher import Outgoing
from serving.model_directory import sha256
from tests.support import first_rounds
from tests.support.fakes import toy_rows, write_rows
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


def test_a_round_promotes_in_such_a_folder(first_round: Path, tmp_path: Path) -> None:
    settings, registry = first_rounds.copied(first_round, tmp_path / first_rounds.FOLDER)
    champion = registry.champion()
    assert champion is not None
    [record] = registry.rounds()
    assert (record.state, record.candidate_version) == (RoundState.PROMOTED, champion.model_version)
    assert (round_folder(settings, record.round_id) / "report.html").exists()
    store = ArtifactStore(settings.location(settings.artifacts.url))
    assert open_version(store.fetch(champion.digest, settings.path("state/cache")), champion.digest)
    registry.close()
