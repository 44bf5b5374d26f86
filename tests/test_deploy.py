"""The files of deploy/ name what the code has: settings, commands, ports, probes, image stages. No engine runs them here."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.settings import Settings, load_settings
from tests.support.command_lines import parsed
from tests.support.fakes import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if str(service["image"]).startswith("ratchet")}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def settings_of(environment: dict[str, Any], folder: Path) -> Settings:
    given = {name: str(value) for name, value in environment.items() if name.startswith("RATCHET_")}
    return load_settings("", given, root=folder)


@pytest.mark.parametrize(("schema", "file"), [
    ("vendor.compose-spec", "deploy/compose.yaml"),
    ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yaml"),
    ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/idea.yaml"),
])  # fmt: skip
def test_a_file_fits_its_schema(schema: str, file: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(REPOSITORY / file)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_commits_are_held_to_the_linters_of_make() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = re.search(r"^lint: .*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert lint is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint[1].splitlines()]
    assert [hook["entry"] for hook in hooks] == commands


@pytest.mark.parametrize("name", [name for name in OURS if name != "serving"])
def test_a_compose_command_is_one_of_ours(name: str) -> None:
    assert parsed(OURS[name]["command"]).params["config"] == Path("/project/ratchet.toml")


@pytest.mark.parametrize("name", list(OURS))
def test_compose_variables_are_settings_and_reach_real_engines(name: str, tmp_path: Path) -> None:
    settings = settings_of(OURS[name]["environment"], tmp_path)
    assert not settings.embedded_broker
    assert settings.registry.url.startswith("postgresql+psycopg://")
    assert settings.artifacts.url.startswith("s3://")
    assert settings.feature_store.event_log.startswith("s3://")
    config = str(settings.feature_store.config)
    assert any(str(volume).endswith(f":{config}:ro") for volume in OURS[name]["volumes"])


def test_hosts_and_ports_of_compose_agree() -> None:
    environment = OURS["serving"]["environment"]
    hosts = re.findall(
        r"(?:^|[/@])(\w+):(\d+)",
        " ".join(str(value) for key, value in environment.items() if not key.startswith("RATCHET_SERVING")),
    )
    assert {host for host, _ in hosts} == {"kafka", "postgres", "s3"}, hosts
    assert {host for host, _ in hosts} <= set(SERVICES)
    kafka = SERVICES["kafka"]["environment"]
    assert kafka["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{environment['RATCHET_KAFKA__BOOTSTRAP_SERVERS']}"
    assert environment["REDIS_ADDRESS"].split(":")[0] in SERVICES
    assert f"-s3.port={environment['AWS_ENDPOINT_URL'].rpartition(':')[2]}" in SERVICES["s3"]["command"]


@pytest.mark.parametrize(("name", "path", "setting"), [
    ("serving", "/readyz", "RATCHET_SERVING__PORT"),
    ("consumer", "/metrics", "RATCHET_FEATURE_STORE__METRICS_PORT"),
])  # fmt: skip
def test_probes_and_scrapes_ask_the_port_that_the_process_opens(name: str, path: str, setting: str) -> None:
    port = OURS[name]["environment"][setting]
    assert f"http://127.0.0.1:{port}{path}" in OURS[name]["healthcheck"]["test"][-1]
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    [targets] = [job["static_configs"][0]["targets"] for job in scraped if job["job_name"] == name]
    assert targets == [f"{name}:{port}"]


def test_compose_starts_in_an_order_that_exists_and_names_its_volumes() -> None:
    for name, service in SERVICES.items():
        needed = service.get("depends_on", {})
        for other in needed:
            assert other in SERVICES, (name, other)
            if isinstance(needed, dict) and needed[other]["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], (name, other)
        for volume in service.get("volumes", []):
            source = str(volume).partition(":")[0]
            assert source in COMPOSE["volumes"] or source.startswith((".", "$")), (name, source)
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source


def test_images_are_built_from_stages_and_commands_that_exist() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert {service["build"]["target"] for service in OURS.values()} <= stages
    scripts: set[str] = set()
    for file in (REPOSITORY / "pyproject.toml", DEPLOY / "package_serving/pyproject.toml"):
        scripts |= set(tomllib.loads(file.read_text(encoding="utf-8"))["project"]["scripts"])
    assert set(re.findall(r'^ENTRYPOINT \["(.+?)"\]$', DOCKERFILE, re.MULTILINE)) <= scripts
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for pin in project["optional-dependencies"]["weights"]:
        assert f"--no-deps {pin}\n" in DOCKERFILE
    pinned = " ".join(project["optional-dependencies"]["dev"])
    for pin in re.findall(r'"((?:build|hatchling)==[\d.]+)"', DOCKERFILE):
        assert pin in pinned


def unit_of(path: Path) -> dict[str, list[str]]:
    """Return key -> values of a unit file, in order."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_runs_a_command_of_ours_and_may_write_its_project_alone(path: Path) -> None:
    unit = unit_of(path)
    for line in unit["ExecStart"]:
        program, *words = shlex.split(line)
        assert program == "/opt/ratchet/bin/ratchet"
        assert parsed(words).params["config"] == Path("/srv/ratchet/%i/ratchet.toml")
    assert unit["User"] == ["ratchet"]
    assert unit["UMask"] == ["0077"]
    if "oneshot" not in unit.get("Type", []):
        assert unit["ReadWritePaths"] == ["/srv/ratchet/%i"]
        assert unit["ProtectSystem"] == ["strict"]


@pytest.mark.systemd
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_a_unit(path: Path, tmp_path: Path) -> None:
    for unit in UNITS:  # they require each other
        text = unit.read_text(encoding="utf-8").replace("/opt/ratchet/bin/ratchet", "/bin/true")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    instance = tmp_path / path.name.replace("@", "@shop")
    instance.symlink_to(tmp_path / path.name)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(instance)],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
        timeout=60,
        encoding="utf-8",
    )
    complaints = [line for line in done.stderr.splitlines() if "ratchet-" in line]
    assert (done.returncode, complaints) == (0, [])
