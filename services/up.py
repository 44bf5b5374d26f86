"""`ratchet up`: run and supervise every process of one project on one machine.

Turns a settings file into running children: the embedded broker (unless a real one is set), the feedback consumer, serving,
the training scheduler and the console. A child that dies is restarted within 5 seconds. Children share files and addresses.
"""

import contextlib
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.triggers import refuse_unbuilt
from schemas.records import Champion, RoundState
from schemas.redact import redacted
from schemas.settings import Settings
from services.checks.champion import unservable
from services.checks.copies import note_folder
from services.checks.registry import migrate_checked
from services.checks.topics import refusal
from services.projects import LOCK, STATE
from services.rounds.executor import round_mark
from services.supervisor.broker_memory import BrokerMemory
from services.supervisor.children import Child, die_with_parent, module, sweep
from services.supervisor.own_address import answers, free_port, refused, url_of
from services.supervisor.project_watch import ProjectWatch
from services.supervisor.state_file import StateFile
from serving.file_lock import LockHeld, held
from serving.messaging.connection import Broker, BrokerRefused, BrokerUnavailable
from serving.messaging.project_topics import make_topics
from serving.messaging.publisher import Topics, embedded_broker_command
from serving.process.private_files import close_folders
from serving.process.start import APPLICATION, bind_address, process_environment, serving_command
from serving.registry.registry import Registry
from serving.registry.safeguards.marker import keep

BROKER_S, READY_S, LOOK_S = 20.0, 120.0, 0.1
TRIES = 4  # failures of a child before it was ready, after which `up` gives up: its settings must be wrong
# Children stop in this order: a round frees the cores, serving publishes its outbox, the consumer stores what was published.
GRACE_S = {"console": 5.0, "scheduler": 10.0, "serving": 20.0, "consumer": 20.0, "broker": 2.0}


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
        self._broker_memory: BrokerMemory | None = None
        self._project_watch = ProjectWatch(settings, self._tell)
        self._is_up = False
        self._console: str | None = None

    def run(self) -> None:
        """Start everything and watch until `stop` is set. Raises UpError, SettingsError, ConnectionError."""
        refuse_unbuilt(self._settings.triggers)
        with self._locked():
            close_folders(self._settings.path(name) for name in ("state", "data"))
            if line := note_folder(self._settings):
                self._tell("project", line)
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
        if reason := refused(serving.host, serving.port):
            raise UpError(f"serving {reason}: free the port, or set serving.port")
        self._host = bind_address(serving.host, serving.port)

    def _start_broker(self) -> None:
        embedded = self._settings.embedded_broker
        if embedded:
            port = free_port()
            self._broker = f"127.0.0.1:{port}"
            self._environment["RATCHET_KAFKA__BOOTSTRAP_SERVERS"] = self._broker
            self._environment["RATCHET_EMBEDDED_BROKER"] = "1"
            child = self.add("broker", embedded_broker_command(port))
            self._broker_memory = BrokerMemory(child, Broker.of(self._settings, self._broker), self._settings)
        self._reach_broker(lambda broker: make_topics(self._settings, broker))
        self._tell("broker", self._broker + (" (embedded)" if embedded else ""))

    def _reach_broker(self, ask: Callable[[Broker], Any]) -> Any:
        """Return what the broker answers, after at most BROKER_S of trying; None if `stop` is set meanwhile."""
        embedded = self._settings.embedded_broker
        broker, shown, deadline = Broker.of(self._settings, self._broker), "", time.monotonic() + BROKER_S
        while not self.stop.is_set():
            self._watch()
            try:
                return ask(broker)
            except BrokerRefused as error:
                raise UpError(str(error)) from error
            except BrokerUnavailable as error:
                if time.monotonic() > deadline:
                    hint = "see state/logs/broker.log" if embedded else "check kafka.bootstrap_servers"
                    raise UpError(f"{error}: {hint}") from error
                if not embedded and str(error) != shown:
                    shown = str(error)
                    self._tell("broker", f"{shown}: trying again for {BROKER_S:.0f} s")
            self.stop.wait(0.2)
        return None

    def _bootstrap(self) -> None:
        """Train the first champion if there is none; refuse to start with one that cannot be served."""
        with contextlib.closing(self._registry()) as registry:
            store = migrate_checked(self._settings, registry)
            topics = Topics.of(self._settings.stream_name)
            if not self._settings.embedded_broker and (
                reason := self._reach_broker(lambda broker: refusal(self._settings, registry, broker, topics))
            ):
                raise UpError(reason)
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

    def _tell_last_round(self, registry: Registry) -> None:
        """Show why the last round failed, or why its last attempt stopped."""
        last = next(iter(registry.rounds()), None)
        if last is not None and last.detail and last.state in (RoundState.FAILED, RoundState.RUNNING):
            state = "failed" if last.state is RoundState.FAILED else "goes on"
            self._tell("round", f"the last one, {last.round_id}, {state}: {last.detail}")

    def _train(self) -> None:
        command = [*module("services.cli.main"), "round", "run", "--bootstrap", "-c", self._config]
        child = subprocess.Popen(command, cwd=APPLICATION, env=self._environment, preexec_fn=die_with_parent)  # noqa: PLW1509
        try:
            while child.poll() is None and not self.stop.wait(LOOK_S):
                self._watch()
        finally:
            child.kill()  # a killed round resumes where it was
            child.wait()

    def _first_champion(self, registry: Registry) -> Champion | None:
        champion = registry.champion()
        if champion is None and not self.stop.is_set():
            detail = next((record.detail for record in registry.rounds()), None)
            raise UpError(f"the first round ended without a champion: {detail or 'see the lines above'}")
        return champion

    def _start_rest(self) -> None:
        serving = self._settings.serving
        self.add("consumer", [*module("services.feedback_consumer"), "-c", self._config])
        self.add("serving", serving_command(self._host, serving.port))
        self.add("scheduler", [*module("services.training_scheduler"), "-c", self._config])
        self._start_console()
        self.await_ready()
        if self.stop.is_set():
            return
        self._tell(
            "serving", f"{self._url()}  (POST /predict, /feedback; GET /model; key in {self._settings.access.keys})"
        )
        self._tell("logs", str(self._settings.path("state/logs")))
        self._tell("ready", "Ctrl-C stops")
        self._is_up = True
        self._write_state()
        self._project_watch.start()

    def _start_console(self) -> None:
        """Start the console if it is on and its port is free: nothing else needs it."""
        console = self._settings.console
        if console.enabled and (reason := refused(console.host, console.port)):
            self._tell("console", f"not started, it {reason}: set console.port")
        elif console.enabled:
            self.add("console", [*module("services.console_server"), "-c", self._config])
            self._console = console.public_url or url_of(console.host, console.port)
            self._tell("console", f"{self._console}  (key: RATCHET_CONSOLE_KEY in {self._settings.access.keys})")

    def await_ready(self, ready_s: float = READY_S) -> None:
        """Wait until serving has a model and consumer and scheduler are ready. Raises UpError if one fails TRIES times."""
        deadline = time.monotonic() + ready_s
        waiting = [child for child in self._children if child.name not in ("broker", "console")]
        while waiting and not self.stop.wait(LOOK_S):
            self._watch()
            waiting = [child for child in waiting if not self._is_ready(child)]
            for child in waiting:
                if child.failures >= TRIES:
                    raise UpError(f"{child.name} does not start: {child.last_line} (see {child.log})")
            if waiting and time.monotonic() > deadline:  # a slow machine or a full disk, which may pass
                self._tell(waiting[0].name, f"is not ready after {ready_s:.0f} s, still waiting: see {waiting[0].log}")
                deadline = math.inf

    def _is_ready(self, child: Child) -> bool:
        # While serving's process is dead, another server may answer on its port.
        return child.ready if child.name != "serving" else child.alive and answers(f"{self._url()}/readyz")

    def add(self, name: str, command: list[str]) -> Child:
        """Start a part and return it."""
        environment = process_environment(name, self._settings, self._config, self._environment)
        logs, mark = self._settings.path("state/logs"), self._mark(name)
        self._children.append(Child(name, command, environment=environment, logs=logs, mark=mark))
        self._children[-1].start()
        return self._children[-1]

    # --- watch and stop ---------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        for child in self._children:
            for line in child.watch():
                self._tell(child.name, line)
        for line in self._broker_memory.watch() if self._broker_memory else ():
            self._tell("broker", line)
        if self._is_up:
            self._write_state()

    def _stop_all(self) -> None:
        """Stop children in the order of GRACE_S, each within its grace period."""
        self._is_up = False
        self._project_watch.close()
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
                "console": self._console,
                "pids": {child.name: child.pid for child in self._children},
                "trouble": {child.name: trouble for child in self._children if (trouble := child.trouble)},
                "triggers": self._settings.triggers.model_dump(),
            }
        )

    def _warn_of_state(self, reason: str) -> None:
        self._tell("up", f"cannot write {STATE} ({reason}): `ratchet status` shows an older state until it can")

    def _registry(self) -> Registry:
        return Registry(self._settings.registry_url, self._settings.model.name)

    def _mark(self, name: str) -> str:
        return f"{self._settings.root.resolve()}:{name}"

    def _url(self) -> str:
        return url_of(self._host, self._settings.serving.port)

    def _tell(self, name: str, line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may have closed
            self._say(redacted(f"{name:<10} {line}".rstrip()))
