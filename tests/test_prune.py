"""What past rounds leave: it goes once nobody needs it, and a round that finds no room says so."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from schemas.configuration.training import TrainingSettings
from schemas.records import RoundState
from schemas.setting_groups import ArtifactSettings, ModelSettings
from schemas.settings import Settings, render_settings
from services.cli.main import cli
from services.rounds import disk_room
from services.rounds.disk_room import NoRoom, clear_models, disk_bytes, needed_bytes, refuse_without_room, shortage
from services.rounds.process import lock_file, locked
from services.rounds.prune import LOGS_BYTES, Pruned, leftovers, refuse_pruned, remove
from serving.artifacts import ArtifactStore
from serving.model_directory import write_manifest
from serving.registry.registry import Registry
from tests.support.manifests import manifest

MODEL_BYTES = 200_000
EXPLAIN = ["dataset.html", "dataset.json", "report.html", "report.json", "round.json", "rows.jsonl"]


class Site:
    """A project whose rounds leave what real ones do, with models of a few bytes."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(root=root, model=ModelSettings(name="m"), artifacts=ArtifactSettings(keep_versions=2))
        self.registry = Registry(self.settings.registry_url, "m")
        self.registry.migrate()
        self.store = ArtifactStore(self.settings.location(self.settings.artifacts.url))
        self.versions: dict[str, str] = {}

    def folder(self, round_id: str) -> Path:
        return self.settings.path("state/rounds") / round_id

    def begin(self) -> str:
        record = self.registry.claim_round(reason="test", cut={}, token=None)
        assert record is not None
        self.registry.start_round(record.round_id)
        folder = self.folder(record.round_id)
        for name in ("full", "version", "tmp123"):
            (folder / name).mkdir(parents=True)
            (folder / name / "model.onnx").write_bytes(record.round_id.encode() + bytes(MODEL_BYTES))
        (folder / "full/history.jsonl").write_text("{}\n", encoding="utf-8")
        for name in EXPLAIN:
            (folder / name).write_text("kept", encoding="utf-8")
        log = self.settings.path("state/logs") / f"round-{record.round_id}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("epoch 1", encoding="utf-8")
        return record.round_id

    def end(self, round_id: str, *, promote: bool) -> str:
        """Seal, store, fetch and register the round's version, then end the round; the version's name."""
        version, directory = f"v{len(self.versions) + 1}", self.folder(round_id) / "version"
        write_manifest(directory, manifest(version))
        digest = self.versions[version] = self.store.put(directory)
        self.store.fetch(digest, self.settings.path(self.settings.artifacts.cache))
        self.registry.register_version(manifest(version), digest, servable=promote)
        if promote:
            champion = self.registry.champion()
            expected = champion.model_version if champion else None
            self.registry.promote(version, expected=expected, token=None, actor="test", round_id=round_id)
        else:
            self.registry.finish_round(round_id, RoundState.REJECTED, detail="test")
        return version

    def run(self, *, promote: bool) -> str:
        return self.end(self.begin(), promote=promote)

    def prune(self) -> int:
        return remove(self.settings, leftovers(self.settings, self.registry))

    def stored(self) -> list[str]:
        return [version for version, digest in self.versions.items() if self.store.size(digest) is not None]

    def cached(self) -> list[str]:
        cache = self.settings.path(self.settings.artifacts.cache)
        return [version for version, digest in self.versions.items() if (cache / digest).exists()]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_an_ended_round_keeps_what_explains_it_and_loses_its_models(site: Site) -> None:
    round_id = site.begin()
    assert leftovers(site.settings, site.registry) == []
    site.end(round_id, promote=True)
    folder = site.folder(round_id)
    before = disk_bytes([folder])
    freed = site.prune()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*EXPLAIN, "history.jsonl"])
    assert freed >= 3 * MODEL_BYTES
    assert before - disk_bytes([folder]) == pytest.approx(freed, abs=8192)
    assert site.prune() == 0


def test_a_round_that_still_writes_its_report_or_awaits_approval_is_left_alone(site: Site) -> None:
    ended, kept = site.begin(), ["full", "tmp123", "version"]
    site.registry.finish_round(ended, RoundState.FAILED, detail="test")
    with locked(lock_file(site.settings, ended)):
        assert site.prune() == 0
    assert site.prune() > 0
    waiting = site.begin()
    site.registry.finish_round(waiting, RoundState.AWAITING_APPROVAL, detail="test")
    assert site.prune() == 0
    assert sorted(path.name for path in site.folder(waiting).iterdir() if path.is_dir()) == kept


def test_versions_that_served_and_the_newest_stay(site: Site) -> None:
    for promote in (True, False, True, False, True, False, False, False):
        site.run(promote=promote)
    site.prune()
    # v1, v3 and the champion v5 have served, v7 and v8 are the newest two
    assert site.stored() == ["v1", "v3", "v5", "v7", "v8"]
    assert site.cached() == ["v3", "v5"]
    for version in site.stored():
        refuse_pruned(site.settings, site.registry, version)
    with pytest.raises(Pruned, match=r"v2 is no longer in the artefact store \(artifacts.keep_versions = 2"):
        refuse_pruned(site.settings, site.registry, "v2")
    assert len(site.registry.versions()) == 8
    assert site.prune() == 0


def test_what_an_unfinished_round_needs_stays_whatever_came_after(site: Site) -> None:
    site.run(promote=True)
    waiting = site.begin()
    version, directory = "v2", site.folder(waiting) / "version"
    write_manifest(directory, manifest(version))
    site.versions[version] = site.store.put(directory)
    site.registry.register_version(manifest(version), site.versions[version], servable=True)
    site.registry.update_round(waiting, candidate_version=version)
    site.registry.finish_round(waiting, RoundState.AWAITING_APPROVAL, detail="test")
    for n in range(3, 9):
        other = manifest(f"v{n}")
        site.registry.register_version(other, f"{n:064d}", servable=False)
    site.prune()
    assert site.stored() == ["v1", "v2"]


def test_versions_and_rounds_of_others_are_left_alone(site: Site) -> None:
    foreign = site.settings.path("state/rounds") / "unknown/full"
    foreign.mkdir(parents=True)
    (site.settings.path(site.settings.artifacts.url) / ("a" * 64)).mkdir(parents=True)
    (site.settings.path(site.settings.artifacts.cache) / ("a" * 64)).mkdir(parents=True)
    assert leftovers(site.settings, site.registry) == []


def test_the_oldest_logs_go_beyond_their_total(site: Site) -> None:
    ids = []
    for _ in range(4):
        ids.append(site.begin())
        site.registry.finish_round(ids[-1], RoundState.FAILED, detail="test")
    remove(site.settings, leftovers(site.settings, site.registry, logs_bytes=20))
    logs = sorted(path.name for path in site.settings.path("state/logs").iterdir())
    assert logs == sorted(f"round-{round_id}.log" for round_id in ids[-2:])  # of seven bytes each
    assert LOGS_BYTES == 50 * 10**6


def test_the_command_shows_and_removes(site: Site) -> None:
    config = site.settings.root / "ratchet.toml"
    config.write_text(render_settings({"model": {"name": "m"}, "artifacts": {"keep_versions": 2}}), encoding="utf-8")
    site.run(promote=True)
    shown = CliRunner().invoke(cli, ["prune", "--dry-run", "--json", "-c", str(config)])
    value = json.loads(shown.output)
    assert value["dry_run"]
    assert value["bytes"] >= 3 * MODEL_BYTES
    assert [one["kind"] for one in value["removed"]] == ["round"]
    assert "freed" in CliRunner().invoke(cli, ["prune", "-c", str(config)]).output
    assert CliRunner().invoke(cli, ["prune", "-c", str(config)]).output == "nothing to remove\n"


def test_a_round_without_room_is_refused_in_one_line(site: Site) -> None:
    base = site.settings.root / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(bytes(1000))
    settings = site.settings.model_copy(update={"model": ModelSettings(name="m", base_model=str(base))})
    assert needed_bytes(settings.model) == 4000 + disk_room.BESIDE_MODEL
    assert shortage(settings) is None
    vast = settings.model_copy(update={"training": TrainingSettings(reserve_mb=10**9)})
    with pytest.raises(
        NoRoom, match=r"no room for a round: it writes about 32 MB and leaves 1000000000 MB for feedback"
    ) as no:
        refuse_without_room(vast)
    assert "\n" not in str(no.value)
    assert disk_room.in_reserve(vast)
    assert disk_room.in_reserve(settings) is None
    assert "soon feedback is refused" in str(disk_room.nearly_full(vast))
    assert disk_room.nearly_full(settings) is None


def test_a_disk_that_cannot_be_read_is_not_called_full(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr("shutil.disk_usage", broken)
    assert disk_room.nearly_full(site.settings) is None


def test_what_an_attempt_has_written_is_not_needed_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    base = site.settings.root / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(bytes(MODEL_BYTES))
    settings = site.settings.model_copy(
        update={
            "model": ModelSettings(name="m", base_model=str(base)),
            "training": TrainingSettings(reserve_mb=0),
        }
    )
    round_id = site.begin()
    free = needed_bytes(settings.model) - 3 * MODEL_BYTES
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert shortage(settings)
    assert shortage(settings, round_id) is None
    clear_models(site.folder(round_id))
    assert shortage(settings, round_id)
