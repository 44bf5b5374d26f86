"""What all commands share: ids by prefix, settings by folder, the version, and one line for an error."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from schemas.settings import SettingsError, render_settings
from services.cli.main import cli, error_line
from services.scheduling.crontab import crontab
from serving.artifacts import ArtifactStore
from serving.http.access import write_keys
from serving.model_directory import write_manifest
from serving.registry.ids import AmbiguousId, UnknownId, resolve
from serving.registry.registry import Registry
from tests.support.fakes import REPOSITORY
from tests.support.manifests import manifest
from tests.support.registries import begin

IDS = ["01a3ffff", "01a22399", "01a22372"]  # the newest first


@pytest.mark.parametrize(
    ("given", "found"),
    [("01a3", "01a3ffff"), ("01a22372", "01a22372"), ("01a2239", "01a22399"), ("latest", "01a3ffff")],
)
def test_a_unique_prefix_stands_for_the_id(given: str, found: str) -> None:
    assert resolve(given, IDS, "round", "`ratchet round list`") == found


def test_an_id_is_itself_though_others_begin_with_it() -> None:
    assert resolve("v1", ["v12", "v1"], "version", "`ratchet model list`") == "v1"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("01a22", "2 rounds begin with '01a22': 01a22399, 01a22372; type more of the id"),
        ("ff", "no round is or begins with 'ff': see `ratchet round list`"),
        ("", "no round is or begins with ''"),
    ],
)
def test_a_prefix_of_several_or_none_is_refused_with_the_candidates(given: str, said: str) -> None:
    with pytest.raises((UnknownId, AmbiguousId)) as refused:
        resolve(given, IDS, "round", "`ratchet round list`")
    assert said in error_line(refused.value)


def _run(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "-c", str(root)])


def _why(refused: Result) -> str:
    assert isinstance(refused.exception, Exception)
    return error_line(refused.exception)


def test_rounds_are_shown_and_rejected_by_prefix(tmp_path: Path) -> None:
    (tmp_path / "ratchet.toml").write_text(render_settings({"model": {"name": "shop"}}), encoding="utf-8")
    registry = Registry(f"sqlite:///{tmp_path}/state/registry.db", "shop")
    registry.migrate()
    write_keys(tmp_path / "keys.env")
    assert "there is no round yet" in _why(_run(tmp_path, "round", "show", "latest"))
    record = begin(registry)
    for given in (record.round_id, record.round_id[:8], "latest"):
        assert _run(tmp_path, "round", "show", given).output.startswith(f"{record.round_id}  running")
    assert "there is no version yet" in _why(_run(tmp_path, "model", "rollback", "v1"))
    for name in ("20261128-a", "20261129-b"):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, manifest(name, model_name="shop"))
        digest = ArtifactStore(str(tmp_path / "state/artifacts")).put(tmp_path / name)
        registry.register_version(manifest(name, model_name="shop"), digest, servable=True)
        live = registry.champion()
        registry.promote(name, expected=live.model_version if live else None, token=None, actor="gates")
    assert "2 versions begin with '2026'" in _why(_run(tmp_path, "model", "rollback", "2026"))
    assert _run(tmp_path, "model", "rollback", "20261128").exit_code == 0
    champion = registry.champion()
    assert champion is not None
    assert champion.model_version == "20261128-a"
    assert _run(tmp_path, "round", "reject", record.round_id[:8], "--reason", "typos").exit_code == 0
    assert registry.round(record.round_id).state == "rejected"
    registry.close()


def test_the_version_is_the_projects() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    shown = CliRunner().invoke(cli, ["--version"])
    assert shown.exit_code == 0
    assert shown.output.startswith(f"ratchet {version}, Python ")


@pytest.mark.parametrize(("flags", "level"), [((), "2"), (("-OO",), "")])
def test_help_is_there_without_docstrings(flags: tuple[str, ...], level: str) -> None:
    environ = {**os.environ, "PYTHONOPTIMIZE": level}
    command = [sys.executable, *flags, "-m", "services.cli.main", "--help"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert "Check every part; exit 1 on any FAIL." in done.stdout


def test_want_of_memory_is_called_that() -> None:
    mapped = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert error_line(mapped).startswith("out of memory (libtorch_cpu.so: failed to map segment")
    caused = ImportError("numpy could not be imported")
    caused.__cause__ = mapped
    assert error_line(caused).startswith("out of memory (")
    assert error_line(MemoryError()).startswith("out of memory (MemoryError)")
    assert error_line(ImportError("no module named x")) == "ImportError: no module named x"


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("0 3 * * 0", 6),
        ("0 3 * * 7", 6),
        ("0 3 * * 1", 0),
        ("0 3 * * sun", 6),
        ("0 3 * * 5-7", None),
        ("0 3 * * */2", None),
    ],
)
def test_weekdays_are_those_of_crontab(text: str, day: int | None) -> None:
    from datetime import UTC, datetime, timedelta

    trigger, moment, days = crontab(text), datetime(2026, 1, 1, tzinfo=UTC), []
    for _ in range(4):
        moment = trigger.get_next_fire_time(None, moment + timedelta(seconds=1))
        days.append(moment.weekday())
    expected = {"0 3 * * 5-7": {4, 5, 6}, "0 3 * * */2": {6, 1, 3, 5}}.get(text, {day})
    assert set(days) == expected


@pytest.mark.parametrize("text", ["61 * * * *", "0 3 * *", "@daily", "0 0 30 2 *", "0 3 * * 8", ""])
def test_a_crontab_that_does_not_parse_or_never_comes_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"triggers\.cron = "):
        crontab(text)
