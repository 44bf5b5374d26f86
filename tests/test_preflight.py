"""What is broken is said at once, in one line, by `up`, `doctor` and `init`, on real project folders."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.checks.preflight import BrokenProject, problems
from services.cli.main import cli
from services.projects import ProjectError, create_project, open_project
from tests.support.fakes import REPOSITORY, toy_rows, write_rows
from tests.support.families import write_weights


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the files of a base model; nothing here loads one."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (folder / "tokenizer.json").touch()
    write_weights(folder / "model.safetensors", [2, 3])
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A project folder with nothing wrong; copy it before you break it."""
    folder = tmp_path_factory.mktemp("sound")
    seed = write_rows(folder / "seed.csv", toy_rows(30, seed=1))
    reference = write_rows(folder / "reference.csv", toy_rows(60, seed=2))
    create_project(folder / "shop", seed=seed, reference=reference, base_model=str(base))
    return folder / "shop"


@pytest.fixture
def project(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "shop")
    return tmp_path / "shop"


def _set(project: Path, setting: str, value: str) -> None:
    """Set a setting, "group.key", in ratchet.toml."""
    path = project / "ratchet.toml"
    group, key = setting.split(".")
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines.index(f"[{group}]")
    end = next((n for n in range(header + 1, len(lines)) if lines[n].startswith("[")), len(lines))
    matches = [n for n in range(header, end) if lines[n].startswith((f"# {key} =", f"{key} ="))]
    lines[matches[0] if matches else header] = f"{key} = {value}" if matches else f"[{group}]\n{key} = {value}"
    path.write_text("\n".join(lines), encoding="utf-8")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "keys gone": (
        lambda p: (p / "keys.env").unlink(),
        "keys.env is missing: restore it, or make new keys with `ratchet access keys`",
    ),
    "keys of noise": (lambda p: (p / "keys.env").write_bytes(b"\xff\x00\x81"), "keys.env is not text in UTF-8"),
    "keys empty": (lambda p: (p / "keys.env").write_text("", encoding="utf-8"), "keys.env holds no keys"),
    "policy key": (
        lambda p: (p / "policy.toml").write_text("[superiority]\nalhpa = 0.1", encoding="utf-8"),
        "policy.toml line 2: unknown setting superiority.alhpa; did you mean superiority.alpha?",
    ),
    "policy value": (
        lambda p: (p / "policy.toml").write_text("[slices]\n\nlikely = 2", encoding="utf-8"),
        "policy.toml line 3: slices.likely = 2: expected less than 1",
    ),
    "policy gone": (lambda p: (p / "policy.toml").unlink(), "gates.policy = 'policy.toml': No such file"),
    "store is no YAML": (
        lambda p: (p / "feature_store.yaml").write_text("a: [", encoding="utf-8"),
        "feature_store.yaml line 1 is not YAML",
    ),
    "store lacks parts": (
        lambda p: (p / "feature_store.yaml").write_text("project: a\nprovider: local", encoding="utf-8"),
        "feature_store.yaml lacks registry, offline_store, online_store",
    ),
    "seed gone": (lambda p: (p / "data/seed.csv").unlink(), "dataset.seed = 'data/seed.csv': No such file"),
    "reference empty": (
        lambda p: (p / "data/reference.csv").write_text("", encoding="utf-8"),
        "data/reference.csv is empty",
    ),
    "seed is reference": (
        lambda p: shutil.copyfile(p / "data/seed.csv", p / "data/reference.csv"),
        "every text of the reference is in the seed too",
    ),
    "domain gone": (
        lambda p: _set(p, "dataset.domain", '["data/d.csv"]'),
        "dataset.domain = 'data/d.csv': No such file",
    ),
    "must_pass gone": (
        lambda p: _set(p, "gates.must_pass", '"data/m.csv"'),
        "gates.must_pass = 'data/m.csv': No such file",
    ),
    "cron": (lambda p: _set(p, "triggers.cron", '"61 * * * *"'), "triggers.cron = '61 * * * *': "),
    "cron that never comes": (lambda p: _set(p, "triggers.cron", '"0 0 30 2 *"'), "there is no such day"),
    "drift": (lambda p: _set(p, "triggers.drift", "0.2"), "triggers.drift = 0.2: this trigger is not implemented yet"),
    "base model gone": (
        lambda p: _set(p, "model.base_model", '"./nowhere"'),
        "model.base_model = './nowhere': there is no such folder",
    ),
    "host": (lambda p: _set(p, "serving.host", '"300.1.1.1.invalid"'), "serving.host = '300.1.1.1.invalid': "),
    "brokers": (lambda p: _set(p, "kafka.bootstrap_servers", '"http://k:9092"'), "expected host:port"),
    "registry": (lambda p: _set(p, "registry.url", '"mysql://h/db"'), "registry.url: mysql is not supported"),
    "setting": (
        lambda p: _set(p, "triggers.min_feedback", "3\nmin_feedbak = 4"),
        "unknown setting triggers.min_feedbak; did you mean triggers.min_feedback?",
    ),
}


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_one_line_of_up_and_of_doctor(
    case: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    breaks, line = BROKEN[case]
    breaks(project)
    refused = _run("up", "-c", str(project))
    assert refused.exit_code == 1
    assert line in str(refused.exception)
    assert "\n" not in str(refused.exception)
    if case not in ("setting", "brokers"):  # refused when the settings are read
        assert any(line in problem for problem in problems(open_project(project)))


def test_a_sound_project_has_no_problem(project: Path) -> None:
    assert problems(open_project(project)) == []
    assert open_project(project) == open_project(project / "ratchet.toml"), "-c takes the folder as well"


def test_up_refuses_every_problem_in_seconds(project: Path) -> None:
    (project / "keys.env").unlink()
    (project / "policy.toml").unlink()
    command = [sys.executable, "-m", "services.cli.main", "up", "-c", str(project)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60, encoding="utf-8"
    )
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("ratchet: ") and "keys.env is missing" in first
    assert "gates.policy = 'policy.toml': No such file" in second
    assert not (project / "state/logs").exists(), "nothing was started"


def test_doctor_fails_on_missing_keys_and_names_the_command(project: Path) -> None:
    (project / "keys.env").unlink()
    (project / "feature_store.yaml").write_text(
        "a: [", encoding="utf-8"
    )  # and Feast is not loaded, which takes seconds
    shown = _run("doctor", "-c", str(project), "--json")
    assert shown.exit_code == 1
    checks = {check["part"]: check for check in json.loads(shown.output)}
    assert checks["keys"]["verdict"] == "FAIL"
    assert "`ratchet access keys`" in checks["keys"]["sentence"]
    assert checks["policy"]["verdict"] == "ok"
    assert checks["data"]["verdict"] == "warn", "few reference rows: they are said, and stop nothing"
    assert "feature_store.yaml line 1 is not YAML" in checks["feature store"]["sentence"]
    assert _run("access", "keys", "-c", str(project)).exit_code == 0
    assert problems(open_project(project), "keys") == []


def test_doctor_names_a_missing_registry_and_creates_none(project: Path) -> None:
    file = project / "state/registry.db"
    file.unlink()
    shown = _run("doctor", "-c", str(project), "--json")
    assert shown.exit_code == 1
    checks = {check["part"]: check for check in json.loads(shown.output)}
    assert checks["registry"]["verdict"] == "FAIL"
    assert checks["registry"]["sentence"] == (
        f"the registry {file} is missing: restore the registry from its newest backup, "
        "or accept a new one with `ratchet up --new-registry`"
    )
    assert [part for part, check in checks.items() if check["verdict"] == "FAIL"] == ["registry"]
    for arguments in (["status"], ["model", "list"], ["labels", "list"]):
        refused = _run(*arguments, "-c", str(project))
        assert (refused.exit_code, f"the registry {file} is missing" in str(refused.exception)) == (1, True), arguments
    assert not file.exists()


def test_doctor_shows_no_password(project: Path) -> None:
    _set(project, "registry.url", '"postgresql+psycopg://u:geheim@127.0.0.1:1/db?password=geheim"')
    (project / "feature_store.yaml").write_text("a: [", encoding="utf-8")
    shown = _run("doctor", "-c", str(project))
    assert "FAIL  registry" in shown.output
    assert "geheim" not in shown.output


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "some/name", "model.gguf", "../x"])
def test_init_wants_a_base_model_that_is_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seed = write_rows(tmp_path / "seed.csv", toy_rows(10, seed=1))
    with pytest.raises(BrokenProject, match=f"^model.base_model = '{name}': there is no such folder"):
        create_project(tmp_path / "p", seed=seed, reference=None, base_model=name)
    assert not (tmp_path / "p").exists(), "nothing half-made stays"


def test_init_refuses_a_reference_that_is_the_seed(tmp_path: Path, base: Path) -> None:
    seed = write_rows(tmp_path / "seed.csv", toy_rows(10, seed=1))
    with pytest.raises(ProjectError, match=r"every text of the seed .* is in the reference"):
        create_project(tmp_path / "p", seed=seed, reference=seed, base_model=str(base))


def test_init_keeps_secrets_out_of_version_control(project: Path) -> None:
    ignored = (project / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"keys.env", "state/"} <= set(ignored)


def test_a_base_model_beside_the_file_is_found_from_anywhere(project: Path, base: Path) -> None:
    shutil.copytree(base, project / "models/tiny")
    _set(project, "model.base_model", '"models/tiny"')
    settings = open_project(project)
    assert settings.model.base_model == str(project / "models/tiny")
    assert problems(settings) == []


def test_state_may_lie_elsewhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_STATE", str(tmp_path / "elsewhere"))
    settings = open_project(project)
    assert settings.path("state/logs") == tmp_path / "elsewhere/logs"
    assert settings.registry_url == f"sqlite:///{tmp_path}/elsewhere/registry.db"
    assert settings.path("data/seed.csv") == project / "data/seed.csv"
