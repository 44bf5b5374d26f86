"""The process of one round: it holds the round's lock, beats, and ends when the round is no longer its own.

Turns a claimed round's id into its final record. `ratchet round run` calls it; the executor asks here whether a round's
process lives. It deliberately knows nothing of what a round does, nor of why it was claimed.

The lock is a file in the round's folder, held for as long as the process lives: two processes of one machine never run
the same round. Between machines the registry's heartbeat and the fencing token do the same.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

from pipelines.training.errors import TrainingDiverged
from schemas.records import Pace, RoundRecord, RoundState
from schemas.settings import Settings
from services.rounds.disk_room import clear_models, in_reserve, shortage
from services.rounds.failures import sentence
from serving.file_lock import LockHeld, held, holder
from serving.registry.registry import Registry, RoundOver

BEAT_S = 2.0
END_S = 15.0  # what a round may do after the registry has its end: write its report, tell the promotions topic

ShowProgress = Callable[[str, float, Pace | None], None]


class RoundBusy(RuntimeError):
    """Another process runs this round."""


class Whereabouts(Enum):
    """Where a round's process is, as seen from this machine."""

    HERE = "it runs here"
    GONE = "it ran here and has ended"
    UNKNOWN = "it never ran here"


def lock_file(settings: Settings, round_id: str) -> Path:
    """The file whose lock a round's process holds."""
    return settings.path("state/rounds") / round_id / "lock"


def whereabouts(path: Path) -> tuple[Whereabouts, int | None]:
    """Where the process that holds a round's lock file is, and its id if it runs here."""
    try:
        alive, note = holder(path)
    except FileNotFoundError:
        return Whereabouts.UNKNOWN, None
    host, pid = _holder(note)
    if alive:
        return Whereabouts.HERE, pid
    return (Whereabouts.GONE if host == socket.gethostname() else Whereabouts.UNKNOWN), None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a round's lock file. Raises RoundBusy."""
    try:
        with held(path, f"{socket.gethostname()} {os.getpid()}"):
            yield
    except LockHeld as error:
        _, pid = _holder(error.note)
        raise RoundBusy(f"round {path.parent.name} is running as process {pid}") from None


def run_claimed(
    round_id: str,
    *,
    settings: Settings,
    registry: Registry,
    token: int | None,
    show: ShowProgress,
    announce: Callable[..., None],
) -> RoundRecord:
    """Run a claimed round, or go on with it, in this process. Raises RoundBusy and what `run_round` raises."""
    with locked(lock_file(settings, round_id)):
        folder = lock_file(settings, round_id).parent
        heart = Heart(registry, round_id, show, lambda: _out_of_room(settings, folder))
        try:
            from pipelines.feature_store.store import (
                FeatureStore,  # here, because memory may run out while they are loaded
            )
            from pipelines.training_round import run_round
            from services.checks.preflight import refuse_broken
            from serving.artifacts import ArtifactStore

            refuse_broken(settings, "policy", "data", "base model")  # else known only after hours of training
            with heart:
                return run_round(
                    round_id,
                    settings=settings,
                    registry=registry,
                    store=ArtifactStore(settings.location(settings.artifacts.url)),
                    features=FeatureStore(settings),
                    token=token,
                    progress=heart.progress,
                    announce=announce,
                )
        except TrainingDiverged as error:  # another attempt would end there too
            with contextlib.suppress(RoundOver, ConnectionError):
                registry.finish_round(round_id, RoundState.FAILED, detail=str(error))
            raise
        except Exception as error:
            # It is resumed or marked failed by others; what stopped it should be seen without its log.
            with contextlib.suppress(Exception):
                registry.update_round(round_id, detail=f"attempt stopped by {sentence(error)}"[:500])
            if shortage(settings, round_id):
                clear_models(folder)  # feedback needs the room more than the next attempt needs what this one made
            raise


def beats(registry: Registry, record: RoundRecord) -> bool:
    """Whether a round's record changes while we watch it for three beats: its process lives, whatever clocks say."""
    until = time.monotonic() + 3 * BEAT_S + 1
    while (found := registry.round(record.round_id)) == record and time.monotonic() < until:
        time.sleep(BEAT_S / 4)
    return found != record


class Heart:
    """Says every two seconds that the round's process lives and how far it is; ends the process if it lost its round."""

    def __init__(
        self,
        registry: Registry,
        round_id: str,
        show: ShowProgress,
        out_of_room: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._out_of_room = out_of_room
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
        """Note and show how far the round is in which step, and how it goes."""
        if self._attempt is None:  # the first call comes right after the round was started
            self._attempt = self._registry.round(self._round_id).attempts
        self._news = {"step": step, "progress": min(1.0, max(0.0, share)), "pace": pace}
        self._show(step, share, pace)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self._beat()
            except RoundOver as error:
                # Perhaps ended by ourselves a moment ago: then the main thread is about to return.
                if not self._stop.wait(END_S):
                    _end(str(error))
            except Exception as error:
                print(f"no heartbeat: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        record = self._registry.round(self._round_id)
        if self._attempt is not None and record.attempts > self._attempt:
            _end(f"round {self._round_id} was taken over by attempt {record.attempts}")
        if reason := self._out_of_room():
            self._registry.update_round(self._round_id, detail=f"attempt stopped: {reason}")
            _end(reason)
        self._registry.update_round(self._round_id, **self._news)


def _out_of_room(settings: Settings, folder: Path) -> str | None:
    """Why the round has to end for want of disk, if it has to; then its models are gone, for feedback needs their room."""
    reason = in_reserve(settings)
    if reason:
        clear_models(folder)
    return reason


def _holder(text: str) -> tuple[str, int | None]:
    host, _, pid = text.partition(" ")
    return host, int(pid) if pid.isdecimal() else None


def _end(reason: str) -> None:
    """Leave at once, as if killed: whatever the main thread is in the middle of is another's now."""
    print(f"ratchet: {reason}: this process stops", file=sys.stderr, flush=True)
    os._exit(1)
