"""The process of one round: hold the round's lock, send heartbeats, end when another process takes the round over.

Turns a claimed round's id into its final record. `ratchet round run` calls it; the executor reads here whether a round's process
lives.

The lock is a file in the round's folder, held while the process lives, so two processes of one machine never run the same
round. Between machines the registry's heartbeat and the fencing token ensure that.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.training.errors import TrainingDiverged
from schemas.records import Pace, RoundRecord, RoundState
from schemas.settings import Settings
from services.rounds.disk_room import clear_models, in_reserve, shortage
from services.rounds.failures import out_of_memory, sentence
from serving.file_lock import LockHeld, held, holder
from serving.process import tracing
from serving.process.tracing import start_tracing, stop_tracing
from serving.registry.registry import Registry, RoundOver

if TYPE_CHECKING:
    from pipelines.round_inputs import RoundProgress

BEAT_S = 2.0
TRACE = "progress.jsonl"  # beside the lock: how training goes, a line each TRACE_S seconds
TRACE_S = 0.5
STOPPED = "attempt stopped by"
END_S = 15.0  # what may follow the round's end in the registry: the report, its files
PROMOTED_S = 120.0  # what may follow a promotion: the message, the marker, MLflow's alias; each waits for its server

ShowProgress = Callable[[str, float, Pace | None], None]


class RoundBusy(RuntimeError):
    """Another process runs this round."""


class Liveness(Enum):
    """Whether a round's process lives, as seen from this machine."""

    RUNNING = "it runs on this machine"
    ENDED = "it ran on this machine and has ended"
    UNKNOWN = "it never ran on this machine"


def lock_file(settings: Settings, round_id: str) -> Path:
    """Return the file whose lock a round's process holds."""
    return settings.path("state/rounds") / round_id / "lock"


def read_lock(path: Path) -> tuple[Liveness, int | None]:
    """Return whether a round's process lives, by its lock file, and the process id if it runs on this machine."""
    try:
        running, note = holder(path)
    except FileNotFoundError:
        return Liveness.UNKNOWN, None
    host, pid = _holder(note)
    if running:
        return Liveness.RUNNING, pid
    return (Liveness.ENDED if host == socket.gethostname() else Liveness.UNKNOWN), None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a round's lock file. Raises RoundBusy if another process holds it."""
    try:
        with held(path, f"{socket.gethostname()} {os.getpid()}"):
            yield
    except LockHeld as error:
        _, pid = _holder(error.note)
        raise RoundBusy(f"round {path.parent.name} is already running, as process {pid}") from None


def run_claimed(
    round_id: str,
    *,
    settings: Settings,
    registry: Registry,
    token: int | None,
    show: ShowProgress,
    announce: Callable[..., None],
) -> RoundRecord:
    """Run or resume a claimed round in this process and return its record. Raises RoundBusy and what `run_round` raises."""
    with locked(lock_file(settings, round_id)):
        folder = lock_file(settings, round_id).parent
        heart = Heart(registry, round_id, show, lambda: _out_of_room(settings, folder), folder / TRACE)
        try:
            # Imported here: memory may run out while they are loaded.
            from pipelines.feature_store.store import FeatureStore
            from pipelines.training_round import run_round
            from services.checks.preflight import refuse_broken
            from serving.artifacts import ArtifactStore

            refuse_broken(settings, "policy", "data", "base model")  # before hours of training
            with heart, _traced(settings, registry.round(round_id), heart.progress) as progress:
                return run_round(
                    round_id,
                    settings=settings,
                    registry=registry,
                    store=ArtifactStore(settings.location(settings.artifacts.url)),
                    features=FeatureStore(settings),
                    token=token,
                    progress=progress,
                    announce=announce,
                )
        except TrainingDiverged as error:  # another attempt would diverge too
            with contextlib.suppress(RoundOver, ConnectionError):
                registry.finish_round(round_id, RoundState.FAILED, detail=str(error))
            raise
        except Exception as error:
            if _repeats(registry, round_id, error):
                with contextlib.suppress(RoundOver, ConnectionError):
                    registry.finish_round(
                        round_id, RoundState.FAILED, detail=f"stopped twice by {sentence(error)}"[:500]
                    )
                raise
            # The scheduler resumes it or marks it failed; the detail shows the cause without the log.
            with contextlib.suppress(Exception):
                registry.update_round(round_id, detail=f"{STOPPED} {sentence(error)}"[:500])
            if shortage(settings, round_id):
                clear_models(folder)  # feedback needs the disk more than the next attempt needs this one's models
            raise


@contextlib.contextmanager
def _traced(settings: Settings, record: RoundRecord, show: "RoundProgress") -> "Iterator[RoundProgress]":
    """Trace a round, if traces are on; each step is an event of its span. Yield `show`, which notices the steps."""
    step = ""
    start_tracing(settings.observability, service="round", model=settings.model.name)
    about = {"ratchet.round_id": record.round_id, "ratchet.reason": record.reason, "ratchet.cut": str(record.cut)}
    try:
        with tracing.span("round", about) as span:

            def noticed(current: str, share: float, pace: Pace | None = None, /) -> None:
                nonlocal step
                if current != step:
                    span.add_event(current)
                    step = current
                show(current, share, pace)

            yield noticed
    finally:
        stop_tracing()


def _repeats(registry: Registry, round_id: str, error: Exception) -> bool:
    """Return whether the attempt before was stopped by the same error, other than one of disk, network or memory."""
    if isinstance(error, OSError | RoundOver) or out_of_memory(error):
        return False
    try:
        return registry.round(round_id).detail == f"{STOPPED} {sentence(error)}"[:500]
    except Exception:
        return False


def beats(registry: Registry, record: RoundRecord) -> bool:
    """Return whether a round's record changes within three heartbeats: its process lives, whatever the clocks say."""
    until = time.monotonic() + 3 * BEAT_S + 1
    while (latest := registry.round(record.round_id)) == record and time.monotonic() < until:
        time.sleep(BEAT_S / 4)
    return latest != record


class Heart:
    """Sends heartbeats with the round's progress every BEAT_S seconds; ends the process if it has lost its round."""

    def __init__(
        self,
        registry: Registry,
        round_id: str,
        show: ShowProgress,
        out_of_room: Callable[[], str | None] = lambda: None,
        trace: Path | None = None,
    ) -> None:
        self._registry = registry
        self._out_of_room = out_of_room
        self._trace = trace
        self._trace_again_at = 0.0
        self._round_id = round_id
        self._show = show
        self._attempt: int | None = None
        self._news: dict[str, object] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def progress(self, step: str, share: float, pace: Pace | None = None, /) -> None:
        """Record and show a step, the share of it that is done (0 to 1), and the pace of training."""
        if self._attempt is None:  # the first call comes right after the round was started
            self._attempt = self._registry.round(self._round_id).attempts
        self._news = {"step": step, "progress": min(1.0, max(0.0, share)), "pace": pace}
        self._show(step, share, pace)
        self._follow(step, share, pace)

    def _follow(self, step: str, share: float, pace: Pace | None) -> None:
        """Append the pace of training to the trace, from which the console draws the curve of a running round."""
        if self._trace is None or pace is None or time.monotonic() < self._trace_again_at:
            return
        self._trace_again_at = time.monotonic() + TRACE_S
        line = {"at": round(time.time(), 2), "step": step, "share": round(share, 4), **pace.model_dump()}
        with contextlib.suppress(OSError), self._trace.open("a", encoding="utf-8") as file:  # it only informs
            file.write(json.dumps(line) + "\n")

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except RoundOver as error:
                # If this process ended the round itself, the main thread returns soon.
                if not self._stop.wait(self._grace_s()):
                    _end(str(error))
            except Exception as error:
                print(f"no heartbeat: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _grace_s(self) -> float:
        """Return the seconds that this process may take to end after its round has."""
        with contextlib.suppress(ConnectionError):
            if self._registry.round(self._round_id).state is RoundState.PROMOTED:
                return PROMOTED_S
        return END_S

    def beat(self) -> None:
        """Send one heartbeat, or end this process if another attempt has taken the round over or the disk is too full."""
        record = self._registry.round(self._round_id)
        if self._attempt is not None and record.attempts > self._attempt:
            _end(f"round {self._round_id} was taken over by attempt {record.attempts}")
        if reason := self._out_of_room():
            self._registry.update_round(self._round_id, detail=f"attempt stopped: {reason}")
            _end(reason)
        self._registry.update_round(self._round_id, **self._news)


def _out_of_room(settings: Settings, folder: Path) -> str | None:
    """Return why the round has to end for lack of disk, after removing its models; None if it need not."""
    reason = in_reserve(settings)
    if reason:
        clear_models(folder)
    return reason


def _holder(text: str) -> tuple[str, int | None]:
    host, _, pid = text.partition(" ")
    return host, int(pid) if pid.isdecimal() else None


def _end(reason: str) -> None:
    """Exit at once, as if killed: another process owns the round now."""
    print(f"ratchet: {reason}: this process stops", file=sys.stderr, flush=True)
    os._exit(1)
