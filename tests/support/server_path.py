"""A server as plain processes: the commands of deploy/compose.yaml, in its order, against engines of this machine.

Turns the compose file into command lines and environments, with this machine's addresses for Kafka (with a password), Postgres,
Redis and S3. The test of the server path and `make bench-server` use it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import yaml

from services.projects import create_project
from serving.http.access import read_keys
from tests.support.fakes import REPOSITORY, free_port, toy_rows, wait_until, write_rows
from tests.support.kafka_security import secure_kafka
from tests.support.object_store import s3_server
from tests.support.registries import postgres_schema

COMPOSE = yaml.safe_load((REPOSITORY / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"]
ONE_SHOT = ("migrate", "bootstrap")
PARTS = ("serving", "consumer", "scheduler")
# What the entry points of the images run, from a folder of the code.
SERVE = """
import os, sys
from pathlib import Path
from serving.process.start import serve
serve(Path(sys.argv[2]), os.environ)
"""


@contextlib.contextmanager
def engines(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the variables of the compose file, with the addresses of engines that run until the block ends."""
    with secure_kafka(folder) as kafka, postgres_schema() as registry, s3_server() as bucket:
        yield {
            "RATCHET_KAFKA__BOOTSTRAP_SERVERS": kafka.address("SASL"),
            "RATCHET_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "RATCHET_KAFKA__SASL_MECHANISM": "PLAIN",
            "RATCHET_KAFKA__SASL_USERNAME": "app",
            "RATCHET_KAFKA_PASSWORD": "app-secret",
            "RATCHET_REGISTRY__URL": registry,
            "RATCHET_ARTIFACTS__URL": f"{bucket}/artifacts",
            "RATCHET_FEATURE_STORE__EVENT_LOG": f"{bucket}/events",
            "RATCHET_FEATURE_STORE__CONFIG": str(REPOSITORY / "deploy/feature_store.yaml"),
            "REDIS_ADDRESS": os.environ["RATCHET_TEST_REDIS"],
            **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        }


def make_project(folder: Path, base: Path, **overrides: dict[str, object]) -> Path:
    """Make a project with `init`, whose first champion knows six rows; return the path of its settings file."""
    groups: dict[str, dict[str, object]] = {
        "model": {"max_length": 32, "name": f"m-{folder.name}"},
        "triggers": {"min_feedback": 90, "tick_seconds": 0.5},
        "training": {"epochs": 1, "threads": 1},
    }
    create_project(
        folder,
        seed=write_rows(folder.parent / "seed.csv", toy_rows(6, seed=1)),
        reference=write_rows(folder.parent / "reference.csv", toy_rows(300, seed=2)),
        base_model=str(base),
        overrides=groups | overrides,
    )
    policy = folder / "policy.toml"  # 200 rows are too few for the default gate of calibration
    text = policy.read_text(encoding="utf-8")
    policy.write_text(text.replace("ece_floor = 0.02", "ece_floor = 0.12"), encoding="utf-8")
    return folder / "ratchet.toml"


class Server:
    """The processes of one project, each with the command of its compose service.

    Args:
        config: settings file of the project.
        variables: addresses of the engines, by variable.
        logs: folder of the processes' output.
        code: folder of the code that the next process runs.

    """

    def __init__(self, config: Path, variables: Mapping[str, str], logs: Path, code: Path = REPOSITORY) -> None:
        self.code = code
        self.key = read_keys(config.parent / "keys.env").api_key
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        self._config, self._variables, self._logs = config, variables, logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, timeout_s: float = 600) -> None:
        """Run a one-shot service to its end. Raises RuntimeError with its output if it fails."""
        began = time.monotonic()
        code = self._start(name).wait(timeout_s)
        if code:
            raise RuntimeError(f"{name} ended with {code}: {self.log(name)[-2000:]}")
        self.seconds[name] = time.monotonic() - began

    def start(self, name: str, timeout_s: float = 240) -> None:
        """Start a service and wait until it is ready. Raises RuntimeError with its output if it ends."""
        printed = len(self.log(name)) if (self._logs / f"{name}.log").exists() else 0

        def ready() -> bool:
            return self._answers() if name == "serving" else "ready" in self.log(name)[printed:]

        began = time.monotonic()
        process = self._processes[name] = self._start(name)
        wait_until(lambda: ready() or process.poll() is not None, timeout_s=timeout_s)
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}: {self.log(name)[-2000:]}")
        self.seconds[name] = time.monotonic() - began

    def stop(self, *names: str) -> dict[str, int]:
        """Send SIGTERM to services, all by default, and return their exit statuses."""
        chosen = {name: self._processes.pop(name) for name in names or tuple(self._processes)}
        for process in chosen.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(60) for name, process in chosen.items()}

    def megabytes(self, name: str) -> float:
        """Return the memory of a running service and its children; pages that several share count once (PSS)."""
        process = psutil.Process(self._processes[name].pid)
        found = [process, *process.children(recursive=True)]
        return float(sum(one.memory_full_info().pss for one in found)) / 1e6

    def model(self) -> dict[str, object]:
        """Return what GET /model says."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return dict(httpx.get(f"{self.url}/model", headers=headers, trust_env=False).json())

    def log(self, name: str) -> str:
        """Return what a service has printed."""
        return (self._logs / f"{name}.log").read_text(encoding="utf-8")

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a compose service, with this machine's addresses."""
        given = {key: str(value) for key, value in COMPOSE[name]["environment"].items()}
        local = {key: value for key, value in self._variables.items() if key in given or key not in COMPOSE[name]}
        ports = {"RATCHET_SERVING__HOST": "127.0.0.1", "RATCHET_SERVING__PORT": str(self.port)}
        ports["RATCHET_FEATURE_STORE__METRICS_PORT"] = str(free_port())
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("RATCHET_", "AWS_"))}
        return outside | given | local | {key: value for key, value in ports.items() if key in given}

    def command(self, name: str) -> list[str]:
        """Return the command line of a compose service, run from this folder of code."""
        words = [str(self._config) if word == "/project/ratchet.toml" else word for word in COMPOSE[name]["command"]]
        if COMPOSE[name]["build"]["target"] == "serving":
            return [sys.executable, "-c", SERVE, *words]
        return [sys.executable, "-m", "services.cli", *words]

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        return False

    def _start(self, name: str) -> "subprocess.Popen[bytes]":
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                self.command(name),
                cwd=self.code,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
