"""`ratchet status`: right, and without what takes seconds to load."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from schemas.records import RoundState
from schemas.setting_groups import ModelSettings, TriggerSettings
from schemas.settings import Settings, render_settings
from services.cli.status import look, triggers_line
from services.ingestion import feedback_counts
from services.ingestion.feedback_counts import FeedbackCounts, counts
from services.projects import LOCK, STATE
from serving.file_lock import held
from serving.registry.glance import glance, read_registry, read_sqlite
from serving.registry.registry import Registry
from tests.support.fakes import REPOSITORY
from tests.support.registries import add_versions, begin


@pytest.fixture
def project(tmp_path: Path) -> Settings:
    """A project with a champion, a worker, and a round that runs."""
    (tmp_path / "ratchet.toml").write_text(render_settings({"model": {"name": "shop"}}), encoding="utf-8")
    settings = Settings(root=tmp_path, model=ModelSettings(name="shop"))
    with contextlib.closing(Registry(settings.registry_url, "shop")) as registry:
        registry.migrate()
        add_versions(registry, "v1")
        registry.promote("v1", expected=None, token=None, actor="ann")
        registry.heartbeat("77", "h", model_version="v1", generation=1, error=None)
        begin(registry, cut={"t/0": 7})
    return settings


def test_a_glance_at_sqlite_answers_as_the_registry_does(project: Settings) -> None:
    url, name = project.registry_url, project.model.name
    seen = read_sqlite(url.removeprefix("sqlite:///"), name)
    assert seen == read_registry(url, name)
    assert seen.champion is not None
    assert seen.last_cut == {"t/0": 7}
    assert glance(url, "another") == read_registry(url, "another"), "each model sees its own"


def test_status_loads_neither_sqlalchemy_nor_feast(project: Settings) -> None:
    code = (
        "import sys; from pathlib import Path; from services.cli.status import look; print('\\n'.join(look(Path('.'))[1]));"
        "print(sorted({'sqlalchemy','feast','pyarrow','kafka','torch','pandas'} & set(sys.modules)))"
    )
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=project.root, env=environ, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert any(line.startswith("champion   v1, generation 1, by ann ") for line in lines)
    assert "worker     77 serves v1" in lines
    assert any(line.startswith("round      ") and "running: not begun" in line for line in lines)
    assert "feedback   0 of 200 since the last round" in lines


def test_how_the_last_round_ended_is_said(project: Settings) -> None:
    with contextlib.closing(Registry(project.registry_url, "shop")) as registry:
        record = registry.unfinished_round()
        assert record is not None
        detail = "superiority: not shown to be better: 12 rows gained, 9 lost of 300 " * 3
        registry.finish_round(record.round_id, RoundState.INSUFFICIENT, detail=detail)
    value, lines = look(project.root)
    assert value["round"] is None
    assert value["last_round"]["state"] == "insufficient evidence"
    [line] = [line for line in lines if line.startswith("round ")]
    assert line.startswith(f"round      none now; {record.round_id} ended ")
    assert "insufficient evidence: superiority: not shown to be better" in line
    assert line.endswith("...")


def _log_of(settings: Settings, version: int) -> None:
    folder = settings.path(settings.feature_store.event_log) / "feedback/_delta_log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{version:020}.json").touch()


def _keep(settings: Settings, kept: FeedbackCounts) -> None:
    settings.path(feedback_counts.FILE).parent.mkdir(parents=True, exist_ok=True)
    settings.path(feedback_counts.FILE).write_text(json.dumps(asdict(kept)), encoding="utf-8")


def test_a_kept_count_is_believed_only_of_the_log_and_the_cut_that_it_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(root=tmp_path)
    assert counts(settings, {}, up=False).labelled == 0, "before there is a log there is no feedback"
    _log_of(settings, 0)
    assert counts(settings, {}, up=False).labelled == 0, "its first version makes the table"
    _log_of(settings, 4)
    kept = FeedbackCounts(version=4, cut={"t/0": 7}, labelled=12, live={"v1": {"agreed": 12}}, at=0.0)
    _keep(settings, kept)
    assert counts(settings, {"t/0": 7}, up=False) == kept

    class Counted(RuntimeError):
        """The store was asked."""

    def asked(*_: object) -> None:
        raise Counted

    monkeypatch.setattr("pipelines.feature_store.store.FeatureStore.__init__", asked)
    for stale in ({"t/0": 8}, {}):
        with pytest.raises(Counted):
            counts(settings, stale, up=False)
    _log_of(settings, 5)  # a commit since
    for up in (False, True):
        with pytest.raises(Counted):
            counts(settings, {"t/0": 7}, up=up)


def test_what_up_was_started_with_is_shown(project: Settings) -> None:
    state = {
        "serving": "http://127.0.0.1:3000",
        "triggers": TriggerSettings(min_feedback=7, cron="0 3 * * 0").model_dump(),
        "trouble": {"serving": "ended with 1: no room (death 3 in a row)"},
    }
    with held(project.path(LOCK), "1"):
        project.path(STATE).write_text(json.dumps(state), encoding="utf-8")
        value, lines = look(project.root)
    assert value["min_feedback"] == 7
    assert "feedback   0 of 7 since the last round" in lines
    assert "triggers   a round starts at 7 labelled feedback, or cron '0 3 * * 0' in UTC" in lines
    assert "trouble    serving ended with 1: no room (death 3 in a row)" in lines


def test_a_disk_that_is_nearly_full_is_trouble_whether_up_runs_or_not(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "disk" not in look(project.root)[0]["trouble"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5 * 10**6}))
    value, lines = look(project.root)
    assert "has 5 MB left" in value["trouble"]["disk"]
    assert any(line.startswith("trouble    disk the disk of") and "ratchet prune" in line for line in lines)


def test_a_crontab_is_said_to_be_in_utc() -> None:
    assert "in UTC" in triggers_line(TriggerSettings(cron="0 3 * * *"))
    assert "in UTC" in str(TriggerSettings.model_fields["cron"].description)
