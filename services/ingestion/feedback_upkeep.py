"""What feedback needs once it is stored: live counts, its prediction if that comes late, an end if it never does.

Turns stored batches and the passing of time into live counts, dead letters and metrics. The consumer calls it between
batches. It deliberately can't stop ingestion: what fails here is tried again later, for the log already holds the truth.
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

log = logging.getLogger("ratchet.aftercare")

JOIN_SECONDS = 5.0  # between looks for the predictions of feedback that came before them, and after a failure
SWEEP_SECONDS = 600.0  # between looks for orphans whose time is up


class Aftercare:
    """The feedback of the partitions that one consumer owns."""

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
        self.live = LiveCounts(features, monotonic)

    def forget(self) -> None:
        """What was counted may be wrong, or others' by now: counts are made anew at the next look."""
        self.live.stale, self._recount_at = True, 0.0

    def take(self, batch: MicroBatch, stored: int) -> None:
        """Count a batch of which `stored` feedback rows were new. Never fails."""
        if stored != len(batch.said):  # somebody else had stored some of it
            self.forget()
        elif not self.live.stale:
            self._trying(lambda: self.live.add(batch.said))

    def look(self, source: Source, owned: set[int], now: datetime) -> None:
        """Do what is due. Never fails."""
        if time.monotonic() >= self._rest_until:
            self._trying(lambda: self._look(source, owned, now))

    def _look(self, source: Source, owned: set[int], now: datetime) -> None:
        beat = time.monotonic()
        if self.live.stale and beat >= self._recount_at:
            self.live.start(source.place(source.topics.feedback, partition) for partition in owned)
            # A tenth of the time at most, however large the log and however often people change their minds.
            self._recount_at = time.monotonic() + 9 * (time.monotonic() - beat)
        if beat >= self._join_at:
            self._join_at = beat + JOIN_SECONDS
            self.live.look_again()
        if beat >= self._sweep_at:
            # Places of topics that are no more belong to whoever has their number now.
            places = [p for p in self._features.current_cut() if int(p.rpartition("/")[2]) % self._partitions in owned]
            expired = self._orphans.expire(source.topics, places, now, self._publish)
            self._sweep_at = beat + self._sweep_every
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
            log.warning("live counts and orphans wait: %s: %s", type(error).__name__, error)
            self.forget()
            self._rest_until = time.monotonic() + JOIN_SECONDS
