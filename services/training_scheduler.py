"""The training scheduler: claim a training round when it is due, resume one whose process died.

Turns gathered feedback into claimed rounds, and dead rounds into resumed or failed ones. Any number of schedulers may run; the
holder of the lease acts, and its fencing token goes with the round. Every tick reads the registry and the event log, so a
lost tick costs nothing.

Waiting and liveness use the monotonic clock, because the wall clock may be set back or ahead.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import click

from pipelines.triggers import TriggerState, decide, refuse_unbuilt
from schemas.events import utc_now
from schemas.records import RoundRecord, RoundState
from schemas.settings import Settings, SettingsError, load_settings
from services.audit_heads import HeadKeeper
from services.ingestion.feedback_counts import CountKeeper
from services.projects import broker_of, settings_file
from services.rounds.disk_room import shortage
from services.rounds.executor import LocalExecutor
from services.rounds.failures import ending
from services.rounds.process import Liveness
from services.rounds.prune import tidy_up
from services.rounds.queue_filler import QueueFiller
from services.rounds.settling import Settler
from services.scheduling.crontab import Crontab
from services.scheduling.metrics import SchedulerMetrics
from services.scheduling.paced import Paced
from services.scheduling.ticker import Ticker
from services.supervisor.signals import stop_on
from serving.file_lock import LockHeld, held
from serving.process.log_lines import log_to
from serving.process.metrics_endpoint import serve_metrics
from serving.process.private_files import keep_private
from serving.registry.clocks import Unchanged
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.training_scheduler")

LEASE_SECONDS = 15.0  # a killed scheduler blocks others for this long, unless the next one runs in its folder
LOCK = "state/scheduler.lock"  # held by a folder's scheduler while it lives
REPEAT_SECONDS = 300.0  # between two lines about ticks that fail for the same reason
CLAIM_SECONDS = 10.0  # a round claimed by hand has to be locked within these seconds
RESUME_SECONDS = 5.0  # before the second attempt; twice that before the third, and so on


class Gathered(Protocol):
    """The part of the feature store that the scheduler reads."""

    def count_labelled_since(self, cut: dict[str, int]) -> int:
        """Return the number of effective labelled feedback stored beyond `cut`."""

    def current_cut(self) -> dict[str, int]:
        """Return the last stored offset of feedback by '<topic_id>/<partition>'."""


class TrainingScheduler:
    """Decides and acts at each tick; `open_features` is retried at the next tick if the store is unreachable."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        open_features: Callable[[], Gathered],
        executor: LocalExecutor,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        holder: str | None = None,
        resume_s: float = RESUME_SECONDS,
        settle: Callable[[int], object] = lambda _token: None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._open_features = open_features
        self._features: Gathered | None = None
        self._executor = executor
        self._resume_s = resume_s
        self._settle = settle
        self._clock = clock
        self._unchanged = Unchanged(monotonic)
        self._lock = contextlib.ExitStack()
        self._dead: str | None = None
        self._locked = False
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}"
        self._last_topic = ""
        self._watched: str | None = None
        self._pruned = False
        self._monotonic, self._said_at = monotonic, monotonic()
        self._labelled = Paced[int](monotonic)
        self._cron = Crontab(settings.triggers.cron, clock())

    def tick(self) -> bool:
        """Renew the lease, supervise an unfinished round, claim one if it is due. Never raises.

        Return whether all of it could be done.
        """
        try:
            self._inherit()
            token = self._registry.acquire_lease("scheduler", self._holder, LEASE_SECONDS)
            if token is None:
                self._say("another scheduler holds the lease")
                return True
            self._settle(token)
            unfinished = self._registry.unfinished_round()
            self._report_end(unfinished)
            self._prune()
            if unfinished:
                self._supervise(unfinished, token)
            else:
                self._claim_if_due(token)
        except Exception as error:
            self._say(f"this tick failed, the next one tries again: {type(error).__name__}: {error}", logging.WARNING)
            return False
        return True

    def close(self) -> None:
        """Stop the round's process without costing the round an attempt, and release the lease. Never raises."""
        stopped = self._executor.stop()
        try:
            if stopped is not None:
                self._registry.interrupt_round(stopped)
            self._registry.release_lease("scheduler", self._holder)
        except Exception as error:
            log.warning("the lease was not released, it expires by itself: %s", error)
        self._lock.close()

    def _inherit(self) -> None:
        """Hold this folder's lock, and release the lease of the dead process that held it before."""
        if not self._locked:
            with contextlib.suppress(LockHeld):  # another scheduler runs in this folder: the lease decides
                self._dead = self._lock.enter_context(held(self._settings.path(LOCK), self._holder, wait_s=0))
                self._locked = True
        if self._dead:
            if self._dead != self._holder:
                self._registry.release_lease("scheduler", self._dead)
            self._dead = None

    def _supervise(self, record: RoundRecord, token: int) -> None:
        """Resume a round whose process is dead, or mark it failed after too many attempts."""
        self._watched = record.round_id
        if record.state is RoundState.AWAITING_APPROVAL or not self._is_dead(record):
            return
        tries = max(record.attempts - record.interruptions, self._executor.starts(record.round_id))
        record = self._with_ending(record)
        if tries >= self._settings.triggers.max_attempts:
            last = f"; {record.detail}" if record.detail else ""
            detail = f"its process ended {tries} times, last in step {record.step or 'none'}{last}"
            self._registry.finish_round(record.round_id, RoundState.FAILED, detail=detail)
            return
        if short := shortage(self._settings, record.round_id):
            self._say(f"round {record.round_id} cannot go on: {short}", logging.WARNING, about="no room")
            return
        since = self._executor.seconds_since_start(record.round_id)
        if since is None or since >= self._resume_s * tries:
            self._start(record.round_id, tries + 1, token)

    def _with_ending(self, record: RoundRecord) -> RoundRecord:
        """Return the record, with the signal that killed its process in its detail."""
        cause = ending(self._executor.exit_code(record.round_id))
        if cause is None or record.detail == f"attempt {cause}":
            return record
        self._registry.update_round(record.round_id, detail=f"attempt {cause}")
        return self._registry.round(record.round_id)

    def _is_dead(self, record: RoundRecord) -> bool:
        liveness = self._executor.liveness(record.round_id)
        if liveness is not Liveness.UNKNOWN:
            return liveness is Liveness.ENDED
        # Its process may run on a machine with another clock: measure how long its heartbeat has not changed.
        silent_s = self._unchanged.seconds("heartbeat", (record.round_id, record.attempts, record.heartbeat_at))
        limit_s = CLAIM_SECONDS if record.state is RoundState.CLAIMED else self._settings.triggers.stale_after_s
        return silent_s >= limit_s

    def _claim_if_due(self, token: int) -> None:
        if self._features is None:
            self._features = self._open_features()
        now = self._clock()
        decision = decide(self._state(self._features, now), self._settings.triggers, now)
        self._say(decision.reason, about=f"{decision.reason.lstrip('0123456789')} {int(10 * decision.progress)}")
        if not decision.fire:
            return
        if short := shortage(self._settings):
            self._say(f"a round is due and cannot start: {short}", logging.WARNING, about="no room")
            return
        record = self._registry.claim_round(reason=decision.reason, cut=self._features.current_cut(), token=token)
        if record is not None:
            self._cron.use(now)
            self._watched = record.round_id
            log.info("round %s claimed: %s", record.round_id, decision.reason)
            self._start(record.round_id, 1, token)

    def _start(self, round_id: str, attempt: int, token: int) -> None:
        log.info("round %s starts, attempt %d; its output: %s", round_id, attempt, self._executor.log(round_id).name)
        self._executor.start(round_id, token)

    def _state(self, features: Gathered, now: datetime) -> TriggerState:
        rounds, cut = self._registry.rounds(), self._registry.last_cut()
        failures = next((n for n, record in enumerate(rounds) if record.state is not RoundState.FAILED), len(rounds))
        return TriggerState(
            labelled_feedback=self._labelled.get(cut, lambda: features.count_labelled_since(cut)),
            idle=self._idle(rounds[0], now) if rounds else None,
            unfinished=False,
            failures=failures,
            cron_due=self._cron.due(now, rounds[0].created_at if rounds else None),
        )

    def _idle(self, last: RoundRecord, now: datetime) -> timedelta:
        """Return the time since a round ended: the longer of what the wall clock and the monotonic clock say."""
        ended = last.finished_at or last.created_at
        return max(now - ended, timedelta(seconds=self._unchanged.seconds("last round", (last.round_id, ended))))

    def _prune(self) -> None:
        """Write what rounds' folders lack and remove what they leave, once at the start and once after each round."""
        if self._pruned:
            return
        self._pruned = True
        try:
            freed = tidy_up(self._settings, self._registry)
        except OSError as error:
            log.warning("files of past rounds stay as they are until the next round has ended: %s", error)
        else:
            if freed:
                log.info("removed %.0f MB of leftovers of past rounds", freed / 1e6)

    def _report_end(self, unfinished: RoundRecord | None) -> None:
        if self._watched is None or (unfinished and unfinished.round_id == self._watched):
            return
        ended = self._registry.round(self._watched)
        self._watched = None
        log.info("round %s is %s. %s", ended.round_id, ended.state, ended.detail or "")
        self._pruned = False

    def _say(self, sentence: str, level: int = logging.INFO, *, about: str | None = None) -> None:
        """Log a sentence unless the last one was about the same topic; a warning that still holds is repeated."""
        again = level >= logging.WARNING and self._monotonic() - self._said_at >= REPEAT_SECONDS
        if again or (about or sentence) != self._last_topic:
            self._last_topic, self._said_at = about or sentence, self._monotonic()
            log.log(level, "%s", sentence)


def _run(config: Path) -> None:
    settings = load_settings(config.read_bytes(), os.environ, root=config.absolute().parent)
    log_to(sys.stdout, log_format=settings.observability.log_format)
    refuse_unbuilt(settings.triggers)
    stop = threading.Event()
    stop_on(stop, signal.SIGTERM, signal.SIGINT)
    registry = Registry(settings.registry_url, settings.model.name)
    executor = LocalExecutor(settings, config)
    counts = CountKeeper(settings, registry)
    heads = HeadKeeper(settings, registry, broker_of(settings) if settings.registry.audit_head_topic else None)
    filler = QueueFiller(settings, config, registry)
    settler = Settler(settings, registry, filler.tick)
    scheduler = TrainingScheduler(settings, registry, counts.open, executor, settle=settler.tick)
    metrics = SchedulerMetrics(settings.model.name, registry.rounds)
    if settings.observability.scheduler_port:
        serve_metrics(metrics.registry, settings.observability.scheduler_port)

    def tick() -> None:
        ticked = scheduler.tick()
        counts.keep()
        heads.keep()
        if ticked:
            metrics.ticked()

    ticker = Ticker(tick, settings.triggers.tick_seconds)
    print("ready", flush=True)
    ticker.run(stop)
    scheduler.close()
    filler.close()
    registry.close()


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default="ratchet.toml", help="settings file")
def main(config: Path) -> None:
    """Run the training scheduler until SIGTERM."""
    keep_private()
    log_to(sys.stdout)
    try:
        _run(settings_file(config))
    except (SettingsError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main()
