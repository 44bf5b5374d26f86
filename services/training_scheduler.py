"""The training scheduler: a tick that looks, decides and claims.

Turns gathered feedback into claimed rounds. Any number of schedulers may run; the lease's holder acts, and its fencing token
goes with the round. APScheduler gives the tick alone: what is due is read from the registry and the event log each time,
so that a lost tick costs nothing.
"""

import logging
import os
import signal
import socket
import sys
import threading
from datetime import datetime
from pathlib import Path

import click
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from pipelines.features import FeatureStore
from pipelines.triggers import TriggerState, decide
from schemas.artifacts import RoundRecord, RoundState
from schemas.events import utc_now
from schemas.settings import Settings, SettingsError, load_settings
from services.executors import LocalExecutor
from serving.registry import Registry

log = logging.getLogger("ratchet.training_scheduler")

LEASE_SECONDS = 30.0


class TrainingScheduler:
    """One scheduler process."""

    def __init__(self, settings: Settings, registry: Registry, features: FeatureStore, executor: LocalExecutor) -> None:
        self._settings = settings
        self._registry = registry
        self._features = features
        self._executor = executor
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._last_reason = ""
        cron = settings.triggers.cron
        self._cron = CronTrigger.from_crontab(cron, timezone="UTC") if cron else None
        self._cron_from = utc_now()

    def tick(self) -> None:
        """Renew the lease, look after an unfinished round, claim one if it is due. Never raises."""
        try:
            token = self._registry.acquire_lease("scheduler", self._holder, LEASE_SECONDS)
            if token is None:
                return
            unfinished = self._registry.unfinished_round()
            if unfinished:
                self._look_after(unfinished, token)
            else:
                self._claim_if_due(token)
        except Exception as error:
            log.warning("this tick failed, the next one tries again: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Stop the round's process and give the lease back."""
        self._executor.stop()
        self._registry.release_lease("scheduler", self._holder)

    def _look_after(self, record: RoundRecord, token: int) -> None:
        """Resume a round whose process is gone, or mark it failed after too many attempts."""
        if record.state is RoundState.AWAITING_APPROVAL or self._executor.running():
            return
        seen = record.heartbeat_at or record.created_at
        fresh = (utc_now() - seen).total_seconds() < self._settings.triggers.stale_after_s
        if fresh and record.state is RoundState.RUNNING:
            return
        if record.attempts >= self._settings.triggers.max_attempts:
            self._registry.finish_round(
                record.round_id,
                RoundState.FAILED,
                detail=f"its process died {record.attempts} times in step {record.step}",
            )
            log.warning("round %s failed: its process died %d times", record.round_id, record.attempts)
            return
        log.info("round %s: starting attempt %d", record.round_id, record.attempts + 1)
        self._executor.start(record.round_id, token)

    def _claim_if_due(self, token: int) -> None:
        now = utc_now()
        decision = decide(self._state(now), self._settings.triggers, now)
        if decision.reason != self._last_reason:
            log.info("%s", decision.reason)
            self._last_reason = decision.reason
        if not decision.fire:
            return
        record = self._registry.claim_round(reason=decision.reason, cut=self._features.current_cut(), token=token)
        if record is not None:
            log.info("round %s claimed", record.round_id)
            self._cron_from = now
            self._executor.start(record.round_id, token)

    def _state(self, now: datetime) -> TriggerState:
        rounds = self._registry.rounds()
        failures = next((n for n, record in enumerate(rounds) if record.state is not RoundState.FAILED), len(rounds))
        due = self._cron.get_next_fire_time(None, self._cron_from) if self._cron else None
        return TriggerState(
            labelled_feedback=self._features.count_labelled_since(self._registry.last_cut()),
            last_round_at=rounds[0].created_at if rounds else None,
            unfinished=False,
            failures=failures,
            cron_due=due is not None and due <= now,
        )


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default="ratchet.toml")
def main(config: Path) -> None:
    """Run the training scheduler until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    settings = load_settings(config.read_text(), os.environ, root=config.absolute().parent)
    if settings.triggers.drift is not None:
        raise SettingsError("triggers.drift is not built yet: leave it unset")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    registry = Registry(settings.registry_url, settings.model.name)
    executor = LocalExecutor(settings, config)
    scheduler = TrainingScheduler(settings, registry, FeatureStore(settings), executor)
    ticking = BackgroundScheduler(timezone="UTC")
    ticking.add_job(
        scheduler.tick,
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


if __name__ == "__main__":
    main()
