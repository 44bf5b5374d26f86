"""Orphans: feedback whose prediction never came.

Turns feedback that has waited longer than `feature_store.orphan_hours` into dead letters, each once. The consumer that
owns a feedback partition looks after its orphans. Until then they are rows of the log like others: `ratchet feedback
export` shows them, and they join the moment their prediction is stored. It deliberately deletes nothing.

Dead letters go first, then the mark that they were sent, as with bad messages: a death in between sends them twice, with
the same position.
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
    """The orphans of the partitions that one consumer owns.

    A clock that runs ahead expires nobody early: time counts as passed as far as what is stored vouches for it, and beyond that
    as far as this process has watched it pass, by its monotonic clock.
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
        self._vouched: datetime | None = None

    def expire(
        self, topics: Topics, places: Sequence[str], now: datetime, publish: Callable[[list[Outgoing]], Any]
    ) -> int:
        """Send to the dead letters what has waited too long in `places`; return how many."""
        now = self._passed(now)
        after, expired = {place: self._features.expired_until(place) for place in places}, 0
        while rows := self._features.orphans(after, now - self._wait, AT_ONCE).to_pylist():
            publish([self._letter(topics, row) for row in rows])
            marks = {row["topic_partition"]: row["offset"] for row in rows}  # in order: the last of each place stays
            self._features.mark_expired(marks)
            after |= marks
            expired += len(rows)
        return expired

    def _passed(self, now: datetime) -> datetime:
        """Return `now`, or the latest time that is vouched for if that is earlier."""
        if self._vouched is None:
            stored = [at for name in ("feedback", "predictions") if (at := self._features.log.stored_at(name))]
            self._vouched = max(stored, default=now)
        return min(now, self._vouched + timedelta(seconds=self._monotonic() - self._begun))

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
