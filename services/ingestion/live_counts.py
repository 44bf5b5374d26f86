"""Live counts: how much feedback agrees with which model version, and what waits for its prediction.

Turns feedback and what the online store knows of its prediction into counts by topic-partition, kept in the online
store for `ratchet status`, dashboards and the guard. The consumer that owns a partition keeps its counts. It
deliberately judges nothing: feedback is no fair sample of traffic (see the design's invariant 10).

Counts are of effective feedback (pipelines/feature_store/effective_feedback.py). They are made anew from the log at
each assignment, and whenever something came that may change what was counted: a retraction, a second word of the same
author on a prediction, or a message that was published again. In between each new feedback adds one; the last
REMEMBERED votes tell a second one.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pipelines.feature_store.effective_feedback import Vote, newest_votes, vote_of
from pipelines.feature_store.store import FeatureStore
from schemas.events import FeedbackReceived
from schemas.targets import text_of

REMEMBERED = 100_000
WAITING = 10_000  # orphans looked up again and again; older ones join when counts are made anew
WRITE_SECONDS = 1.0
ONLINE_TICK = timedelta(seconds=1)  # an online store may keep times in whole seconds

Verdict = str  # "agreed", "disagreed" or "other"
_Waiting = tuple[str, Any]  # place, value


class LiveCounts:
    """Counts of the partitions that one consumer owns. `monotonic` measures the pause between two writes."""

    def __init__(self, features: FeatureStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._features = features
        self._monotonic = monotonic
        self._counts: dict[str, Counter[tuple[str, Verdict]]] = {}
        self._waiting: dict[Vote, _Waiting] = {}
        self._seen: dict[Vote, None] = {}
        self._changed: set[str] = set()
        self._write_again_at = 0.0
        self._newest: datetime | None = None
        self.stale = True

    def start(self, places: Iterable[str]) -> None:
        """Count anew from the log, for the places owned from now on.

        What lies under a topic that is no more is counted where it lies, by whoever owns the same partition now; its copy under
        the present topic is not effective.
        """
        self._counts = {place: Counter() for place in places}
        owned = {_partition(place) for place in self._counts}
        feedback = self._features.effective_feedback()
        counted, unknown = self._features.counted(feedback)
        for row in counted.to_pylist():
            if _partition(row["topic_partition"]) in owned:
                self._counts.setdefault(row["topic_partition"], Counter())[
                    row["model_version"], _verdict(row["agreed"])
                ] += row["n"]
        self._waiting.clear()
        for row in unknown.slice(max(0, unknown.num_rows - WAITING)).to_pylist():
            place = f"{row['topic_id']}/{row['partition']}"
            if _partition(place) in owned and row["offset"] > self._features.expired_until(place):
                self._waiting[vote_of(row)] = (place, json.loads(row["value"]))
        self._seen = dict.fromkeys(newest_votes(feedback, REMEMBERED))
        self._newest = max(self._features.live_times(self._counts).values(), default=None)
        self._changed, self.stale = set(self._counts), False

    def add(self, said: Sequence[tuple[str, FeedbackReceived]]) -> None:
        """Take in feedback that was just stored, joined to its prediction in the online store."""
        fresh: dict[Vote, _Waiting] = {}
        for place, event in said:
            vote = vote_of(event.data.model_dump())
            if event.data.kind == "retract" or vote in self._seen:
                self.stale = True
                return
            self._seen[vote] = None
            fresh[vote] = (place, event.data.value)
        while len(self._seen) > REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._join(fresh)

    def look_again(self) -> None:
        """Join what waited for its prediction, where that has come."""
        self._join(dict(self._waiting))

    @property
    def waiting(self) -> int:
        """Effective feedback whose prediction has not been seen and that has not expired."""
        return len(self._waiting)

    def totals(self) -> Counter[tuple[str, Verdict]]:
        """(model version, verdict) -> feedback, over the places owned."""
        return sum(self._counts.values(), Counter())

    def write(self, now: datetime) -> None:
        """Keep in the online store what changed, once a second at most.

        There a later time wins, so each write is later than the one before even if the clock was set back since.
        """
        beat = self._monotonic()
        if self._changed and beat >= self._write_again_at:
            at = now if self._newest is None else max(now, self._newest + ONLINE_TICK)
            self._features.write_live({place: _dump(self._counts[place]) for place in self._changed}, at)
            self._newest, self._write_again_at, self._changed = at, beat + WRITE_SECONDS, set()

    def _join(self, votes: Mapping[Vote, _Waiting]) -> None:
        known = self._features.look_up(list({prediction_id for prediction_id, _, _ in votes}))
        for vote, (place, value) in votes.items():
            prediction = known.get(vote[0])
            if prediction is None:
                if len(self._waiting) < WAITING:
                    self._waiting[vote] = (place, value)
                continue
            self._waiting.pop(vote, None)
            verdict = _verdict(_agreed(vote[1], value, prediction["predicted_label"]))
            self._counts.setdefault(place, Counter())[prediction["model_version"], verdict] += 1
            self._changed.add(place)


def live_counts(features: FeatureStore) -> dict[str, dict[Verdict, int]]:
    """By model version: how much feedback agreed, disagreed or said neither, as consumers last kept it."""
    total: Counter[tuple[str, Verdict]] = Counter()
    for state in features.live(list(features.current_cut())).values():
        for version, by_verdict in json.loads(state).items():
            total.update({(version, verdict): n for verdict, n in by_verdict.items()})
    return _by_version(total)


def _partition(place: str) -> str:
    return place.rpartition("/")[2]


def _agreed(kind: str, value: Any, predicted_label: str) -> bool | None:
    if kind == "correction":
        return text_of(value) == predicted_label
    return bool(value == "up") if kind == "rating" else None


def _verdict(agreed: bool | None) -> Verdict:
    return "other" if agreed is None else "agreed" if agreed else "disagreed"


def _dump(counts: Mapping[tuple[str, Verdict], int]) -> str:
    return json.dumps(_by_version(counts))


def _by_version(counts: Mapping[tuple[str, Verdict], int]) -> dict[str, dict[Verdict, int]]:
    found: dict[str, dict[Verdict, int]] = {}
    for (version, verdict), n in sorted(counts.items()):
        found.setdefault(version, {})[verdict] = n
    return found
