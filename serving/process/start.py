"""Start a process of the application: where its code lies, its environment, and the command line of serving.

Turns settings into command lines and environments. `ratchet up` starts children with them, `ratchet start` and
`ratchet-serving` replace their own process.
"""

import ipaddress
import os
import socket
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from schemas.settings import Settings, load_settings
from serving.process.private_files import keep_private

APPLICATION = Path(__file__).parents[2]  # the folder of schemas, serving, pipelines and services, installed or cloned
# For files that libraries open, and for arguments and paths, in any locale.
UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}


def release() -> str:
    """Return the version in pyproject.toml, or "unknown" where the file was left out."""
    file = APPLICATION / "pyproject.toml"
    return str(tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"]) if file.exists() else "unknown"


def bind_address(host: str, port: int) -> str:
    """Return the numeric address of a host name, IPv4 before IPv6. Raises OSError if it has none."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(min(entries, key=lambda entry: entry[0] is not socket.AF_INET)[4][0])


def serving_command(host: str, port: int) -> list[str]:
    """Return the command line of serving, given a numeric address: BentoML accepts no host names."""
    ipaddress.ip_address(host)
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:RatchetService"]
    return [*command, "--host", host, "--port", str(port)]


def process_environment(name: str, settings: Settings, config: Path | str, base: Mapping[str, str]) -> dict[str, str]:
    """Return `base` with what a process of a project needs: its settings file, UTF-8, no telemetry, few threads."""
    threads = (
        {} if name == "scheduler" else {"OMP_NUM_THREADS": "1"}
    )  # its rounds inherit; training.threads sets theirs
    kept = {key: value for key, value in base.items() if key != "PYTHONSAFEPATH"}  # `python -m` looks where it starts
    return {
        **kept,
        **UTF8,
        "RATCHET_CONFIG": str(config),
        "DO_NOT_TRACK": "1",
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_HOME": str(settings.path("state/bentoml")),
        "PYTHONUNBUFFERED": "1",
        **threads,
    }


def become(command: list[str], environment: Mapping[str, str]) -> None:
    """Replace this process by `command`, started in the application's folder, so that its modules are found first."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(APPLICATION)
    os.execve(command[0], command, {**environment})  # noqa: S606 - ourselves


def serve(config: Path, base: Mapping[str, str]) -> None:
    """Replace this process by serving, given a settings file. Raises SettingsError, and OSError for an unknown host."""
    keep_private()  # before BentoML makes its folders
    settings = load_settings(config.read_bytes(), base, root=config.absolute().parent)
    command = serving_command(bind_address(settings.serving.host, settings.serving.port), settings.serving.port)
    become(command, process_environment("serving", settings, config.absolute(), base))
