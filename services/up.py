"""`ratchet up`: run and supervise every process of one project on one machine.

Turns a settings file into running children: the embedded broker (unless a real one is set), the feedback consumer, serving
and the training scheduler. A child that dies is restarted within 5 seconds. Children and supervisor share only files and
addresses.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.triggers import refuse_unbuilt
from schemas.records import Champion, RoundState
from schemas.redact import redacted
from schemas.settings import Settings
from services.checks.champion import unservable
from services.projects import LOCK, STATE
from services.rounds.executor import REPOSITORY, round_mark
from services.supervisor.children import Child, die_with_parent, sweep
from services.supervisor.own_address import answers, bind_address, free_port, url_of
from services.supervisor.state_file import StateFile
from serving.artifacts import ArtifactStore
from serving.file_lock import LockHeld, held
from serving.messaging.publisher import BrokerUnavailable, Topics, embedded_broker_command, ensure_topics
from serving.process.private_files import close_folders
from serving.registry.marker import check, keep
from serving.registry.registry import Registry

BROKER_S = 20.0
READY_S = 120.0
TRIES = 4  # failures of a child before it was ready, after which `up` gives up: its settings must be wrong
LOOK_S = 0.1
# Children stop in this order: a round frees the cores, serving publishes its outbox, the consumer stores what was published.
GRACE_S = {"scheduler": 10.0, "serving": 20.0, "consumer": 20.0, "broker": 2.0}


class UpError(RuntimeError):
    """`ratchet up` cannot start; the message gives the reason."""


class Supervisor:
    """Starts children, restarts those that die, stops all in order. `stop` may be set from a signal handler."""

    def __init__(self, settings: Settings, config: Path, say: Callable[[str], None]) -> None:
        self.stop = threading.Event()
        self._settings = settings
        self._config = str(config.absolute())
        self._say = say
        self._children: list[Child] = []
        self._environment = dict(os.environ)
        self._broker = settings.kafka.bootstrap_servers or ""
        self._host = settings.serving.host
        self._state_file = StateFile(settings.path(STATE), self._warn_of_state)
        self._is_up = False

    def run(self) -> None:
        """Start everything and watch until `stop` is set. Raises UpError, SettingsError, ConnectionError."""
        refuse_unbuilt(self._settings.triggers)
        with self._locked():
            close_folders(self._settings.path(name) for name in ("state", "data"))
            self._end_left_over()
            self._check_port()
            try:
                self._start_broker()
                if not self.stop.is_set():
                    self._bootstrap()
                if not self.stop.is_set():
                    self._start_rest()
                while not self.stop.wait(LOOK_S):
                    self._watch()
            finally:
                self._stop_all()

    # --- start ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the project's lock, so that only one `up` runs in its folder."""
        try:
            with held(self._settings.path(LOCK), str(os.getpid())):
                try:
                    yield
                finally:
                    self._state_file.remove()
        except LockHeld as error:
            raise UpError(f"already up in this folder, as process {error.note}: stop it first") from None

    def _end_left_over(self) -> None:
        """Kill the children that a killed `up` left; the lock is ours, so no living `up` needs them."""
        self._state_file.remove()
        for name in GRACE_S:
            if killed := sweep(self._mark(name)):
                self._tell(name, f"{killed} processes of an earlier `ratchet up` that was killed: ended")

    def _check_port(self) -> None:
        serving = self._settings.serving
        try:
            self._host = bind_address(serving.host, serving.port)  # BentoML accepts no host names
            with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind((self._host, serving.port))
        except OSError as error:
            where = f"{serving.host}:{serving.port}"
            raise UpError(
                f"serving cannot bind {where} ({error.strerror}): free the port, or set serving.port"
            ) from error

    def _start_broker(self) -> None:
        kafka, embedded = self._settings.kafka, self._settings.embedded_broker
        if embedded:
            port = free_port()
            self._broker = f"127.0.0.1:{port}"
            self._environment["RATCHET_KAFKA__BOOTSTRAP_SERVERS"] = self._broker
            self._environment["RATCHET_EMBEDDED_BROKER"] = "1"
            self._add("broker", embedded_broker_command(port))
        deadline = time.monotonic() + BROKER_S
        while not self.stop.is_set():
            self._watch()
            try:
                ensure_topics(
                    self._broker,
                    Topics.of(self._settings.model.name).names(),
                    partitions=kafka.partitions,
                    replication_factor=kafka.replication_factor,
                    timeout_s=kafka.publish_timeout_s,
                )
                break
            except BrokerUnavailable as error:
                if time.monotonic() > deadline:
                    hint = "see state/logs/broker.log" if embedded else "check kafka.bootstrap_servers"
                    raise UpError(f"{error}: {hint}") from error
            self.stop.wait(0.2)
        self._tell("broker", self._broker + (" (embedded)" if embedded else ""))

    def _bootstrap(self) -> None:
        """Train the first champion if there is none; refuse to start with one that cannot be served."""
        registry = Registry(self._settings.registry_url, self._settings.model.name)
        try:
            registry.migrate()
            store = ArtifactStore(self._settings.location(self._settings.artifacts.url))
            check(registry, store)
            champion = registry.champion()
            self._tell_last_round(registry)
            if champion is None:
                self._tell("champion", "none yet: training the first one on the seed")
                self._train()
                champion = self._first_champion(registry)
            if champion is not None:
                self._tell("champion", f"{champion.model_version}, generation {champion.generation}")
                if reason := unservable(self._settings, registry):
                    raise UpError(reason)
                keep(registry, store)
        finally:
            registry.close()

    def _tell_last_round(self, registry: Registry) -> None:
        """Show why the last round failed, or why its last attempt stopped."""
        last = next(iter(registry.rounds()), None)
        if last is not None and last.detail and last.state in (RoundState.FAILED, RoundState.RUNNING):
            state = "failed" if last.state is RoundState.FAILED else "goes on"
            self._tell("round", f"the last one, {last.round_id}, {state}: {last.detail}")

    def _train(self) -> None:
        command = [*_module("services.cli.main"), "round", "run", "--bootstrap", "-c", self._config]
        child = subprocess.Popen(command, cwd=REPOSITORY, env=self._environment, preexec_fn=die_with_parent)  # noqa: PLW1509
        try:
            while child.poll() is None and not self.stop.wait(LOOK_S):
                self._watch()
        finally:
            child.kill()  # a killed round resumes where it was
            child.wait(10)

    def _first_champion(self, registry: Registry) -> Champion | None:
        champion = registry.champion()
        if champion is None and not self.stop.is_set():
            detail = next((record.detail for record in registry.rounds()), None)
            raise UpError(f"the first round ended without a champion: {detail or 'see the lines above'}")
        return champion

    def _start_rest(self) -> None:
        serving = self._settings.serving
        self._add("consumer", [*_module("services.feedback_consumer"), "-c", self._config])
        command = [*_module("bentoml"), "serve", "serving.service:RatchetService"]
        self._add("serving", [*command, "--host", self._host, "--port", str(serving.port)])
        self._add("scheduler", [*_module("services.training_scheduler"), "-c", self._config])
        self._await_ready()
        if self.stop.is_set():
            return
        self._tell(
            "serving", f"{self._url()}  (POST /predict, /feedback; GET /model; key in {self._settings.access.keys})"
        )
        self._tell("logs", str(self._settings.path("state/logs")))
        self._tell("ready", "Ctrl-C stops")
        self._is_up = True
        self._write_state()

    def _await_ready(self) -> None:
        """Wait until serving has a model and consumer and scheduler report that they are ready. Raises UpError."""
        deadline = time.monotonic() + READY_S
        waiting = [child for child in self._children if child.name != "broker"]
        while waiting and not self.stop.wait(LOOK_S):
            self._watch()
            waiting = [child for child in waiting if not self._is_ready(child)]
            for child in waiting:
                if child.failures >= TRIES:
                    raise UpError(f"{child.name} does not start: {child.last_line} (see {child.log})")
                if time.monotonic() > deadline:
                    raise UpError(f"{child.name} was not ready within {READY_S:.0f} s: see {child.log}")

    def _is_ready(self, child: Child) -> bool:
        # While serving's process is dead, another server may answer on its port.
        return child.ready if child.name != "serving" else child.alive and answers(f"{self._url()}/readyz")

    def _add(self, name: str, command: list[str]) -> None:
        environment = {
            **self._environment,
            "RATCHET_CONFIG": self._config,
            "DO_NOT_TRACK": "1",
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_HOME": str(self._settings.path("state/bentoml")),
            "PYTHONUNBUFFERED": "1",
        }
        if name != "scheduler":  # rounds inherit its environment; training.threads sets their threads
            environment["OMP_NUM_THREADS"] = "1"
        logs = self._settings.path("state/logs")
        child = Child(name, command, environment=environment, logs=logs, mark=self._mark(name))
        self._children.append(child)
        child.start()

    # --- watch and stop ---------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        for child in self._children:
            for line in child.watch():
                self._tell(child.name, line)
        if self._is_up:
            self._write_state()

    def _stop_all(self) -> None:
        """Stop children in the order of GRACE_S, each within its grace period."""
        self._is_up = False
        self._state_file.remove()
        if not self._children:
            return
        self._tell("stopping", "storing the accepted events")
        children = {child.name: child for child in self._children}
        for name, grace_s in GRACE_S.items():
            if name in children and not children[name].stop(grace_s) and name != "broker":
                self._tell(name, f"did not stop within {grace_s:.0f} s: killed")
        sweep(round_mark(self._settings))  # a round whose scheduler died; the next start resumes it
        self._tell("stopped", "")

    def _write_state(self) -> None:
        self._state_file.write(
            {
                "pid": os.getpid(),
                "broker": self._broker,
                "serving": self._url(),
                "pids": {child.name: child.pid for child in self._children},
                "trouble": {child.name: trouble for child in self._children if (trouble := child.trouble)},
                "triggers": self._settings.triggers.model_dump(),
            }
        )

    def _warn_of_state(self, reason: str) -> None:
        self._tell("up", f"cannot write {STATE} ({reason}): `ratchet status` shows an older state until it can")

    def _mark(self, name: str) -> str:
        return f"{self._settings.root.absolute()}:{name}"

    def _url(self) -> str:
        return url_of(self._host, self._settings.serving.port)

    def _tell(self, name: str, line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may have closed
            self._say(redacted(f"{name:<10} {line}".rstrip()))


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]
