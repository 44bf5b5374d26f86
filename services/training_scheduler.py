"""The training scheduler: a tick that looks, decides and claims.

Turns gathered feedback into claimed rounds, and dead rounds into resumed or failed ones. Any number of schedulers may run;
the lease's holder acts, and its fencing token goes with the round. APScheduler gives the tick alone: what is due is read
from the registry and the event log each time, so that a lost tick costs nothing. It deliberately does not know what a
round does.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import click
from apscheduler.schedulers.background import BackgroundScheduler

from pipelines.triggers import TriggerState, decide, refuse_unbuilt
from schemas.artifacts import RoundRecord, RoundState
from schemas.events import utc_now
from schemas.settings import Settings, SettingsError, load_settings
from services.crontab import crontab
from services.executors import LocalExecutor
from services.failures import ending
from services.feedback_counts import CountKeeper
from services.round_process import Whereabouts
from services.signals import stop_on
from serving.log_lines import log_to
from serving.private_files import keep_private
from serving.registry import Registry

log = logging.getLogger("ratchet.training_scheduler")

LEASE_SECONDS = 15.0  # a scheduler that was killed is missed for so long
CLAIM_SECONDS = 10.0  # how long who claimed a round by hand may take to lock it
RESUME_SECONDS = 5.0  # before the second attempt; twice that before the third, and so on


class Gathered(Protocol):
    """What the scheduler asks of the feature store."""

    def count_labelled_since(self, cut: dict[str, int]) -> int:
        """Distinct effective labelled feedback stored beyond `cut`."""

    def current_cut(self) -> dict[str, int]:
        """Last stored offset of feedback, by '<topic_id>/<partition>'."""


class TrainingScheduler:
    """One scheduler process. `open_features` is called again until it succeeds: a store that is away costs a line."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        open_features: Callable[[], Gathered],
        executor: LocalExecutor,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._open_features = open_features
        self._features: Gathered | None = None
        self._executor = executor
        self._clock = clock
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._said = ""
        self._watched: str | None = None
        cron = settings.triggers.cron
        self._cron = crontab(cron) if cron else None
        self._cron_from = clock()

    def tick(self) -> None:
        """Renew the lease, look after an unfinished round, claim one if it is due. Never raises."""
        try:
            token = self._registry.acquire_lease("scheduler", self._holder, LEASE_SECONDS)
            if token is None:
                self._say("another scheduler has the lease")
                return
            unfinished = self._registry.unfinished_round()
            self._report_end(unfinished)
            if unfinished:
                self._look_after(unfinished, token)
            else:
                self._claim_if_due(token)
        except Exception as error:
            self._say(f"this tick failed, the next one tries again: {type(error).__name__}: {error}", logging.WARNING)

    def close(self) -> None:
        """Stop the round's process and give the lease back. Never raises."""
        self._executor.stop()
        try:
            self._registry.release_lease("scheduler", self._holder)
        except Exception as error:
            log.warning("the lease cannot be given back, it runs out by itself: %s", error)

    def _look_after(self, record: RoundRecord, token: int) -> None:
        """Leave a round alone whose process may live; resume a dead one, or mark it failed after too many attempts."""
        self._watched = record.round_id
        if record.state is RoundState.AWAITING_APPROVAL or not self._is_dead(record):
            return
        tries = max(record.attempts, self._executor.starts(record.round_id))
        record = self._with_ending(record)
        if tries >= self._settings.triggers.max_attempts:
            said = f"; {record.detail}" if record.detail else ""
            detail = f"its process ended {tries} times, last in step {record.step or 'none'}{said}"
            self._registry.finish_round(record.round_id, RoundState.FAILED, detail=detail)
            return
        since = self._executor.seconds_since_start(record.round_id)
        if since is None or since >= RESUME_SECONDS * tries:
            self._start(record.round_id, tries + 1, token)

    def _with_ending(self, record: RoundRecord) -> RoundRecord:
        """Put into the round's detail what its process could not say itself, as that it was killed."""
        said = ending(self._executor.exit_code(record.round_id))
        if said is None or record.detail == f"attempt {said}":
            return record
        self._registry.update_round(record.round_id, detail=f"attempt {said}")
        return self._registry.round(record.round_id)

    def _is_dead(self, record: RoundRecord) -> bool:
        where = self._executor.whereabouts(record.round_id)
        if where is not Whereabouts.UNKNOWN:
            return where is Whereabouts.GONE
        silent_s = (self._clock() - (record.heartbeat_at or record.created_at)).total_seconds()
        limit_s = CLAIM_SECONDS if record.state is RoundState.CLAIMED else self._settings.triggers.stale_after_s
        return silent_s > limit_s

    def _claim_if_due(self, token: int) -> None:
        if self._features is None:
            self._features = self._open_features()
        now = self._clock()
        decision = decide(self._state(self._features, now), self._settings.triggers, now)
        self._say(decision.reason, about=f"{decision.reason.lstrip('0123456789')} {int(10 * decision.progress)}")
        if not decision.fire:
            return
        record = self._registry.claim_round(reason=decision.reason, cut=self._features.current_cut(), token=token)
        if record is not None:
            self._cron_from = now
            self._watched = record.round_id
            log.info("round %s claimed: %s", record.round_id, decision.reason)
            self._start(record.round_id, 1, token)

    def _start(self, round_id: str, attempt: int, token: int) -> None:
        log.info("round %s starts, attempt %d; its output: %s", round_id, attempt, self._executor.log(round_id).name)
        self._executor.start(round_id, token)

    def _state(self, features: Gathered, now: datetime) -> TriggerState:
        rounds = self._registry.rounds()
        failures = next((n for n, record in enumerate(rounds) if record.state is not RoundState.FAILED), len(rounds))
        due = self._cron.get_next_fire_time(None, self._cron_from) if self._cron else None
        return TriggerState(
            labelled_feedback=features.count_labelled_since(self._registry.last_cut()),
            last_round_at=(rounds[0].finished_at or rounds[0].created_at) if rounds else None,
            unfinished=False,
            failures=failures,
            cron_due=due is not None and due <= now,
        )

    def _report_end(self, unfinished: RoundRecord | None) -> None:
        if self._watched is None or (unfinished and unfinished.round_id == self._watched):
            return
        ended = self._registry.round(self._watched)
        self._watched = None
        log.info("round %s is %s. %s", ended.round_id, ended.state, ended.detail or "")

    def _say(self, sentence: str, level: int = logging.INFO, *, about: str | None = None) -> None:
        """Log a sentence unless the last one was about the same."""
        if (about or sentence) != self._said:
            self._said = about or sentence
            log.log(level, "%s", sentence)


def _run(config: Path) -> None:
    settings = load_settings(config.read_bytes(), os.environ, root=config.absolute().parent)
    refuse_unbuilt(settings.triggers)
    stop = threading.Event()
    stop_on(stop, signal.SIGTERM, signal.SIGINT)
    registry = Registry(settings.registry_url, settings.model.name)
    executor = LocalExecutor(settings, config)
    counts = CountKeeper(settings, registry)
    scheduler = TrainingScheduler(settings, registry, counts.open, executor)

    def tick() -> None:
        scheduler.tick()
        counts.keep()

    ticking = BackgroundScheduler(timezone="UTC")
    ticking.add_job(
        tick,
        "interval",
        seconds=settings.triggers.tick_seconds,
        misfire_grace_time=None,
        coalesce=True,
        max_instances=1,
    )
    ticking.start()
    print("ready", flush=True)
    stop.wait()
    ticking.shutdown(wait=False)
    scheduler.close()
    registry.close()


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default="ratchet.toml")
def main(config: Path) -> None:
    """Run the training scheduler until SIGTERM."""
    keep_private()
    log_to(sys.stdout)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a tick that takes longer than the next is no news
    try:
        _run(config)
    except (SettingsError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main()
