"""A copy of a project's folder notices that it is one; a moved, linked, renamed or restored folder does not."""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from schemas.configuration.kafka import KafkaSettings
from schemas.setting_groups import RegistrySettings
from schemas.settings import Settings
from services.checks.copies import CopiedProject, note_folder
from services.projects import open_project
from serving.http.access import read_keys
from tests.support.conditions import Conditions
from tests.support.fakes import free_port, wait_until
from tests.support.running_up import stored_ids, tiny_project

CLUSTER = KafkaSettings(bootstrap_servers="kafka:9092")
SHARED = RegistrySettings(url="postgresql+psycopg://me:secret@postgres/ratchet")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project that has run: its settings are the defaults."""
    folder = tmp_path / "shop"
    note_folder(Settings(root=folder))
    return folder


def test_a_copy_says_so_once_with_the_way_out_and_is_then_a_project_of_its_own(shop: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shop, tmp_path / "copy")
    line = note_folder(Settings(root=copy))
    assert line is not None
    assert line.startswith(f"this folder is a copy of {shop}: ")
    assert "`ratchet access keys --renew all`" in line
    assert note_folder(Settings(root=copy)) is None
    assert note_folder(Settings(root=shop)) is None


def test_a_copy_of_a_copy_names_the_copy(shop: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shop, tmp_path / "copy")
    note_folder(Settings(root=copy))
    again = shutil.copytree(copy, tmp_path / "again")
    assert str(note_folder(Settings(root=again))).startswith(f"this folder is a copy of {copy}: ")


def test_a_moved_or_restored_folder_is_no_copy(shop: Path, tmp_path: Path) -> None:
    moved = shop.rename(tmp_path / "moved")
    assert note_folder(Settings(root=moved)) is None
    backup = shutil.copytree(moved, tmp_path / "backup")
    shutil.rmtree(moved)
    shutil.copytree(backup, moved)
    assert note_folder(Settings(root=moved)) is None


def test_a_link_to_the_folder_is_no_copy(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shop)
    assert note_folder(Settings(root=tmp_path / "link")) is None
    assert note_folder(Settings(root=shop)) is None


def test_a_copy_that_would_take_the_originals_events_is_refused_until_it_has_topics_of_its_own(tmp_path: Path) -> None:
    shop = Settings(root=tmp_path / "shop", kafka=CLUSTER)
    note_folder(shop)
    copy = shutil.copytree(shop.root, tmp_path / "copy")
    for _ in range(2):
        with pytest.raises(CopiedProject, match=r"is a copy of .*/shop: .*Set kafka\.topic_prefix here, or "):
            note_folder(Settings(root=copy, kafka=CLUSTER))
    others = CLUSTER.model_copy(update={"topic_prefix": "copy."})
    assert "from now on a project of its own" in str(note_folder(Settings(root=copy, kafka=others)))
    assert note_folder(Settings(root=copy, kafka=others)) is None


def test_two_folders_of_one_registry_are_one_project(tmp_path: Path) -> None:
    shop = Settings(root=tmp_path / "shop", kafka=CLUSTER, registry=SHARED)
    note_folder(shop)
    copy = Settings(root=shutil.copytree(shop.root, tmp_path / "copy"), kafka=CLUSTER, registry=SHARED)
    assert note_folder(copy) is None
    assert "secret" not in (copy.root / "state/folder.json").read_text(encoding="utf-8")


def test_a_note_that_cannot_be_read_or_written_stops_nothing(shop: Path, tmp_path: Path) -> None:
    (shop / "state/folder.json").write_text("{", encoding="utf-8")
    assert note_folder(Settings(root=shop)) is None
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert note_folder(Settings(root=tmp_path / "file")) is None


@pytest.mark.long
def test_a_project_is_moved_while_stopped_and_its_copy_runs_beside_it(tmp_path: Path) -> None:
    shop = tiny_project(tmp_path / "shop", tmp_path / "scratch", console={"enabled": False}).root
    conditions = Conditions.of(tmp_path / "elsewhere", "000", TMPDIR=str(tmp_path / "missing"))
    with up(conditions, shop) as (client, _):
        [prediction] = client.post("/predict", json={"items": [{"text": "goal"}]}).raise_for_status().json()
    moved = shop.rename(tmp_path / "größe, a new place")
    note_folder(open_project(moved))  # as its next start does, before it is copied
    copy = shutil.copytree(moved, tmp_path / "copy")
    listen_on(copy, free_port())
    feedback = {"prediction_id": prediction["prediction_id"], "kind": "correction", "value": "football"}
    with up(conditions, moved) as (client, shown), up(conditions, copy) as (other, shown_by_copy):
        assert "is a copy of" not in shown()
        assert f"this folder is a copy of {moved}: " in shown_by_copy()
        for one in (client, other):
            one.post("/feedback", json=feedback).raise_for_status()
    for folder in (moved, copy):
        assert len(stored_ids(open_project(folder))[2]) == 1  # each stored its own


def listen_on(project: Path, port: int) -> None:
    """Set the port of serving."""
    config = project / "ratchet.toml"
    text = re.sub(r"(?m)^port = \d+$", f"port = {port}", config.read_text(encoding="utf-8"), count=1)
    config.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def up(conditions: Conditions, project: Path) -> Iterator[tuple[httpx.Client, Callable[[], str]]]:
    """Run `ratchet up` under conditions within the block; yield a client with its key, and what `up` has printed."""
    log, state = project.with_suffix(".log"), project / "state/up.json"
    process = conditions.start(log, "up", "-c", project)

    def shown() -> str:
        return log.read_text(encoding="utf-8")

    try:
        wait_until(lambda: state.exists() or process.poll() is not None, timeout_s=600)
        assert process.poll() is None, shown()
        url = f"http://127.0.0.1:{open_project(project).serving.port}"
        headers = {"Authorization": f"Bearer {read_keys(project / 'keys.env').api_key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            yield client, shown
    finally:
        process.terminate()
        assert process.wait(300) == 0, shown()
