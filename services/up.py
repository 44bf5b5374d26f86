"""`ratchet up`: every process of one project on one machine, watched.

Turns a settings file into running children: the embedded broker (unless a real one is set), the feedback consumer, serving
and the training scheduler. A child that dies is started again within 5 seconds, for as long as we live. It deliberately
shares nothing with its children but files and addresses.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from schemas.settings import Settings
from services.executors import REPOSITORY
from serving.broker import BrokerUnavailable, Topics, embedded_broker_command, ensure_topics
from serving.registry import Registry

MAX_DELAY_S = 5.0
GRACE_S = 20.0


class UpError(RuntimeError):
    """`ratchet up` cannot start; the message says why."""


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    restart_at: float = 0.0
    started_at: float = 0.0


def _die_with_parent() -> None:
    """Linux: a child gets SIGTERM when its supervisor dies, so that nothing is left holding the ports."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@dataclass
class Supervisor:
    """Starts children, restarts the dead, stops all in order."""

    settings: Settings
    config: Path
    say: Callable[[str], None]
    stop: threading.Event = field(default_factory=threading.Event)
    children: list[Child] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(self) -> None:
        """Start everything and watch until `stop` is set. Raises UpError."""
        lock = self._lock()
        try:
            self._check_port()
            self._registry_ready()
            self._start_broker()
            self._bootstrap()
            if not self.stop.is_set():
                self._start_rest()
                self._watch()
        finally:
            self._stop_all()
            self.settings.path("state/up.json").unlink(missing_ok=True)
            lock.close()

    # --- start ------------------------------------------------------------------------------------------------------

    def _lock(self) -> IO[str]:
        path = self.settings.path("state/up.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UpError(f"already up in this folder, as process {lock.read().strip()}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _check_port(self) -> None:
        address = (self.settings.serving.host, self.settings.serving.port)
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind(address)
            except OSError as error:
                raise UpError(
                    f"{address[0]}:{address[1]} cannot be used ({error.strerror}): set serving.port"
                ) from error

    def _registry_ready(self) -> None:
        registry = Registry(self.settings.registry_url, self.settings.model.name)
        registry.migrate()
        registry.close()

    def _start_broker(self) -> None:
        kafka = self.settings.kafka
        if kafka.bootstrap_servers is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            self.environment["RATCHET_KAFKA__BOOTSTRAP_SERVERS"] = f"127.0.0.1:{port}"
            self.environment["RATCHET_EMBEDDED_BROKER"] = "1"
            self._add("broker", embedded_broker_command(port))
        address = self.environment.get("RATCHET_KAFKA__BOOTSTRAP_SERVERS") or kafka.bootstrap_servers
        assert address is not None
        deadline = time.monotonic() + 20
        while not self.stop.is_set():
            try:
                ensure_topics(
                    address,
                    Topics.of(self.settings.model.name).names(),
                    partitions=kafka.partitions,
                    replication_factor=kafka.replication_factor,
                    timeout_s=kafka.publish_timeout_s,
                )
                break
            except BrokerUnavailable as error:
                if time.monotonic() > deadline:
                    raise UpError(f"{error}: is kafka.bootstrap_servers right?") from error
                self.stop.wait(0.2)
        self.say(f"broker     {address}" + (" (embedded)" if kafka.bootstrap_servers is None else ""))

    def _bootstrap(self) -> None:
        registry = Registry(self.settings.registry_url, self.settings.model.name)
        try:
            if registry.champion() is not None:
                return
            self.say("champion   none yet: training the first one from the seed")
            unfinished = registry.unfinished_round()
            claimed = unfinished or registry.claim_round(reason="no champion yet", cut={}, token=None)
            assert claimed is not None
            command = [
                *self._module("services.cli"),
                "round",
                "run",
                "--claimed",
                claimed.round_id,
                "-c",
                self._config(),
            ]
            child = subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, preexec_fn=_die_with_parent)  # noqa: PLW1509
            while child.poll() is None:
                if self.stop.wait(0.1):
                    child.terminate()
                    child.wait(10)
                    return
            if registry.champion() is None:
                detail = registry.round(claimed.round_id).detail
                raise UpError(f"the first champion could not be trained: {detail or 'see the lines above'}")
        finally:
            registry.close()

    def _start_rest(self) -> None:
        serving = self.settings.serving
        self._add("consumer", [*self._module("services.feedback_consumer"), "-c", self._config()])
        command = [*self._module("bentoml"), "serve", "serving.service:RatchetService", "--host", serving.host]
        command += ["--port", str(serving.port)]
        self._add("serving", command)
        self._add("scheduler", [*self._module("services.training_scheduler"), "-c", self._config()])
        url = f"http://{serving.host}:{serving.port}"
        waiting_since = time.monotonic()
        while not self.stop.is_set() and not _answers(f"{url}/readyz"):
            self._restart_the_dead()
            if time.monotonic() - waiting_since > 120:
                raise UpError(
                    f"serving did not get ready within 120 s: see {self.settings.path('state/logs/serving.log')}"
                )
            self.stop.wait(0.2)
        self._write_state(url)
        self.say(f"serving    {url}  (POST /predict, /feedback; GET /model; key in keys.env)")
        self.say(f"logs       {self.settings.path('state/logs')}")
        self.say("ready      Ctrl-C stops")

    def _add(self, name: str, command: list[str]) -> None:
        child = Child(name, command)
        self.children.append(child)
        self._start(child)

    def _start(self, child: Child) -> None:
        logs = self.settings.path("state/logs")
        logs.mkdir(parents=True, exist_ok=True)
        home = self.settings.path("state/bentoml")
        environment = {
            **self.environment,
            "RATCHET_CONFIG": self._config(),
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_HOME": str(home),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        with (logs / f"{child.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                child.command,
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one syscall, before threads exist in the child
            )
        child.started_at = time.monotonic()

    def _module(self, name: str) -> list[str]:
        return [sys.executable, "-m", name]

    def _config(self) -> str:
        return str(self.config.absolute())

    # --- watch and stop ---------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self.stop.wait(0.2):
            self._restart_the_dead()

    def _restart_the_dead(self) -> None:
        for child in self.children:
            assert child.process is not None
            if child.process.poll() is None:
                continue
            if not child.restart_at:
                quick = time.monotonic() - child.started_at < 30
                child.deaths = child.deaths + 1 if quick else 1
                delay = min(MAX_DELAY_S, 0.25 * 2 ** (child.deaths - 1))
                child.restart_at = time.monotonic() + delay
                _kill_group(child.process)
                self.say(f"{child.name:<10} ended with {child.process.returncode}: starting again in {delay:.1f} s")
            elif time.monotonic() >= child.restart_at:
                child.restart_at = 0.0
                self._start(child)
                self._write_state(f"http://{self.settings.serving.host}:{self.settings.serving.port}")

    def _stop_all(self) -> None:
        """Serving first, so that its outbox drains; then the consumer, which stores what is left; the broker last."""
        order = {"scheduler": 0, "serving": 1, "consumer": 2, "broker": 3}
        for child in sorted(self.children, key=lambda c: order[c.name]):
            process = child.process
            if process is None or process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(1 if child.name == "broker" else GRACE_S)
            except subprocess.TimeoutExpired:
                if child.name != "broker":
                    self.say(f"{child.name:<10} did not stop within {GRACE_S:.0f} s: killed")
            _kill_group(process)
            process.wait(5)
        self.say("stopped")

    def _write_state(self, url: str) -> None:
        state = {
            "pid": os.getpid(),
            "broker": self.environment.get("RATCHET_KAFKA__BOOTSTRAP_SERVERS") or self.settings.kafka.bootstrap_servers,
            "serving": url,
            "pids": {child.name: child.process.pid for child in self.children if child.process},
        }
        path = self.settings.path("state/up.json")
        path.with_suffix(".part").write_text(json.dumps(state))
        path.with_suffix(".part").rename(path)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own loopback address
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False
