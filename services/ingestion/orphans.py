"""Orphans: feedback whose prediction never came.

Turns feedback that has waited longer than `feature_store.orphan_hours` into dead letters, each once. The consumer that
owns a feedback partition expires its orphans. Their rows stay in the log: `ratchet feedback export` shows them, and they join
their prediction if it arrives later.

Dead letters are published before they are marked as sent: a crash in between sends them twice, with the same position.
"""

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.feature_store.store import FeatureStore
from schemas.events import FeedbackData, FeedbackReceived
from services.ingestion.dead_letters import ORPHAN, dead_letter
from serving.messaging.publisher import Message, Outgoing, Topics

AT_ONCE = 1000


class Orphans:
    """Expires the orphans of the partitions that one consumer owns.

    A wall clock that runs ahead expires none early: time counts up to the newest stored row, and beyond it by this process's
    monotonic clock.
    """

    def __init__(
        self,
        features: FeatureStore,
        model_name: str,
        hours: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._features = features
        self._model_name = model_name
        self._wait = timedelta(hours=hours)
        self._monotonic = monotonic
        self._begun = monotonic()
        self._newest: datetime | None = None

    def expire(
        self, topics: Topics, partition_keys: Sequence[str], now: datetime, publish: Callable[[list[Outgoing]], Any]
    ) -> int:
        """Publish the expired orphans of the partitions as dead letters and return their number."""
        now = self._elapsed(now)
        after, expired = {key: self._features.expired_until(key) for key in partition_keys}, 0
        while rows := self._features.orphans(after, now - self._wait, AT_ONCE).to_pylist():
            publish([self._letter(topics, row) for row in rows])
            marks = {
                row["topic_partition"]: row["offset"] for row in rows
            }  # in order: the last offset of each partition wins
            self._features.mark_expired(marks)
            after |= marks
            expired += len(rows)
        return expired

    def _elapsed(self, now: datetime) -> datetime:
        """Return `now`, or the newest stored time plus the time since the start, whichever is earlier."""
        if self._newest is None:
            stored = [at for name in ("feedback", "predictions") if (at := self._features.log.stored_at(name))]
            self._newest = max(stored, default=now)
        return min(now, self._newest + timedelta(seconds=self._monotonic() - self._begun))

    def _letter(self, topics: Topics, row: dict[str, Any]) -> Outgoing:
        data = FeedbackData(
            feedback_id=row["feedback_id"],
            prediction_id=row["prediction_id"],
            model_name=self._model_name,
            kind=row["kind"],
            value=json.loads(row["value"]),
            user=row["user"],
        )
        event = FeedbackReceived(
            id=row["feedback_id"],
            source="ratchet/consumer",
            subject=row["prediction_id"],
            time=row["event_timestamp"].astimezone(UTC),
            data=data,
        )
        key, value = row["prediction_id"].encode(), event.model_dump_json().encode()
        message = Message(topics.feedback, row["partition"], row["offset"], key, value, ())
        hours = self._wait.total_seconds() / 3600
        return dead_letter(topics, message, row["topic_partition"], f"{ORPHAN}no prediction within {hours:g} hours")
