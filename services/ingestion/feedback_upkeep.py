"""Upkeep of stored feedback: live counts, late joins to predictions, expiry of orphans.

Turns stored batches and elapsed time into live counts, dead letters and metrics. The consumer calls it between batches. Its
failures never stop ingestion: the event log holds every row, and the work is retried later.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from pipelines.feature_store.store import FeatureStore
from schemas.settings import Settings
from services.ingestion.live_counts import LiveCounts
from services.ingestion.metrics import ConsumerMetrics
from services.ingestion.micro_batch import MicroBatch, Source
from services.ingestion.orphans import Orphans
from serving.messaging.publisher import Outgoing

log = logging.getLogger("ratchet.feedback_upkeep")

JOIN_SECONDS = 5.0  # between joins of feedback to late predictions, and after a failure
SWEEP_SECONDS = 600.0  # between expiries of orphans


class FeedbackUpkeep:
    """Looks after the feedback of the partitions that one consumer owns."""

    def __init__(
        self,
        settings: Settings,
        features: FeatureStore,
        metrics: ConsumerMetrics,
        publish: Callable[[list[Outgoing]], Any],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        hours = settings.feature_store.orphan_hours
        self._hours = hours
        self._features = features
        self._metrics = metrics
        self._publish = publish
        self._partitions = settings.kafka.partitions
        self._orphans = Orphans(features, settings.model.name, hours, monotonic)
        self._sweep_every = min(SWEEP_SECONDS, hours * 3600 / 10)
        self._join_at = self._sweep_at = self._rest_until = self._recount_at = 0.0
        self._swept: set[int] = set()  # the partitions of the last sweep
        self.live = LiveCounts(features, monotonic)

    def recount(self) -> None:
        """Make the next `run_due` count from the log: rows or partitions have changed."""
        self.live.stale, self._recount_at = True, 0.0

    def take(self, batch: MicroBatch, stored: int) -> None:
        """Count a batch of which `stored` feedback rows were new. Never raises."""
        if stored != len(batch.feedback):  # another consumer had stored some of it
            self.recount()
        elif not self.live.stale:
            self._trying(lambda: self.live.add(batch.feedback))

    def run_due(self, source: Source, owned: set[int], now: datetime) -> None:
        """Recount, join, expire and write what is due. Never raises."""
        if time.monotonic() >= self._rest_until:
            self._trying(lambda: self._run_due(source, owned, now))

    def _run_due(self, source: Source, owned: set[int], now: datetime) -> None:
        beat = time.monotonic()
        if self.live.stale and beat >= self._recount_at:
            self.live.start(source.partition_key(source.topics.feedback, partition) for partition in owned)
            # Recounting takes at most a tenth of the time, however large the log is.
            self._recount_at = time.monotonic() + 9 * (time.monotonic() - beat)
        if beat >= self._join_at:
            self._join_at = beat + JOIN_SECONDS
            self.live.join_waiting()
        # The group may assign no partitions at first: those that come later are swept as they come.
        if beat >= self._sweep_at or owned - self._swept:
            # A partition of a deleted topic belongs to the owner of the present partition with the same number.
            keys = [p for p in self._features.current_cut() if int(p.rpartition("/")[2]) % self._partitions in owned]
            expired = self._orphans.expire(source.topics, keys, now, self._publish)
            self._sweep_at, self._swept = beat + self._sweep_every, owned
            self._metrics.expired.inc(expired)
            self._features.forget_predictions(now - timedelta(hours=self._hours))
            if expired:
                log.warning("%d feedback without prediction to %s", expired, source.topics.dead_letters)
        self.live.write(now)
        self._metrics.show(self.live)

    def _trying(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            log.warning("live counts and orphans are postponed: %s: %s", type(error).__name__, error)
            self.recount()
            self._rest_until = time.monotonic() + JOIN_SECONDS
