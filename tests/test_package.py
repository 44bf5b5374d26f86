"""The two wheels: one import package each, every file of the application, a command that no stranger's module can break."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.fakes import REPOSITORY

PACKAGES = {
    "ratchet_loop": ("schemas", "serving", "pipelines", "services"),
    "ratchet_loop_serving": ("schemas", "serving"),
}
PROJECTS = {"ratchet_loop": REPOSITORY, "ratchet_loop_serving": REPOSITORY / "deploy/package_serving"}


@pytest.fixture(scope="module", params=list(PACKAGES))
def package(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def wheel(package: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(PROJECTS[package])]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_a_wheel_has_one_import_package_with_every_file_of_the_application(wheel: Path, package: str) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {package}
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES[package]], cwd=REPOSITORY, check=True, capture_output=True, encoding="utf-8"
    )
    application = {f"{package}/{name}" for name in listed.stdout.splitlines() if (REPOSITORY / name).exists()}
    outside = {name for name in names if name.split("/")[1] not in PACKAGES[package]}
    assert names - outside >= application
    assert not {name for name in names if "__pycache__" in name or "/tests/" in name}


def test_the_metadata_names_the_command_and_the_readme(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [entry] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "ratchet" in entry
    [metadata] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA")]
    assert not re.search(r"^Requires-Dist: .*@ ", metadata, re.MULTILINE), "an index refuses addresses"


def ran(installed: Path, command: list[str], folder: Path, strangers: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{installed}:{strangers}"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
        timeout=120,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["ratchet_loop"], indirect=True)
def test_a_strangers_modules_are_not_taken_for_ours(installed: Path, tmp_path: Path) -> None:
    for name in ("schemas", "services", "serving", "pipelines"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger')\n", encoding="utf-8")
    printed = ran(installed, ["-m", "ratchet_loop", "--version"], tmp_path, tmp_path)
    assert re.match(r"ratchet \d+\.\d+\.\d+, Python ", printed)
    assert "a stranger" not in ran(installed, ["-m", "ratchet_loop", "init", "--help"], tmp_path, tmp_path)


@pytest.mark.parametrize("package", ["ratchet_loop_serving"], indirect=True)
def test_serving_loads_without_training_frameworks(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "schemas.py").write_text("raise SystemExit('a stranger')\n", encoding="utf-8")
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'datasets', 'feast', 'sklearn', 'apscheduler'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(installed / 'ratchet_loop_serving')!r})\n"
        "import serving.service\n"
        "from serving.process.start import APPLICATION, release\n"
        "print(APPLICATION, release())\n"
    )
    printed = ran(installed, ["-c", code], tmp_path, tmp_path).split()
    assert printed[0] == str(installed / "ratchet_loop_serving")
    assert printed[1] != "unknown"


@pytest.mark.parametrize("package", ["ratchet_loop_serving"], indirect=True)
def test_both_wheels_have_one_version(installed: Path) -> None:
    def version(path: Path) -> str:
        found = re.search(r'^version = "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
        assert found
        return found[1]

    assert version(installed / "ratchet_loop_serving/pyproject.toml") == version(REPOSITORY / "pyproject.toml")
