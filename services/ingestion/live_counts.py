"""Live counts: how much feedback agrees with each model version, and how much waits for its prediction.

Turns feedback and predictions of the online store into counts by topic partition, written to the online store for
`ratchet status` and dashboards. The consumer that owns a partition keeps its counts. They are no accuracy: feedback is not a
representative sample of traffic.

Counts are of effective feedback (pipelines/feature_store/effective_feedback.py). They are computed from the log at each
assignment, and after anything that may change counted feedback: a retraction, a second vote of the same author on a
prediction, or a message published twice. Otherwise each new feedback adds one; the last REMEMBERED votes reveal a second one.
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
WAITING = 10_000  # orphans looked up repeatedly; older ones join at the next recount
WRITE_SECONDS = 1.0
ONLINE_TICK = timedelta(seconds=1)  # an online store may round times to whole seconds

Verdict = str  # "agreed", "disagreed" or "other"
_Waiting = tuple[str, Any]  # partition key '<topic_id>/<partition>', feedback value


class LiveCounts:
    """Counts the feedback of the partitions that one consumer owns; `monotonic` times the writes."""

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

    def start(self, partition_keys: Iterable[str]) -> None:
        """Count from the log, for the partitions owned from now on.

        Rows of a deleted topic count under their old key, by the owner of the present partition with the same number; their
        copies under the present topic are not effective.
        """
        self._counts = {key: Counter() for key in partition_keys}
        owned = {_partition(key) for key in self._counts}
        feedback = self._features.effective_feedback()
        counted, unknown = self._features.counted(feedback)
        for row in counted.to_pylist():
            if _partition(row["topic_partition"]) in owned:
                self._counts.setdefault(row["topic_partition"], Counter())[
                    row["model_version"], _verdict(row["agreed"])
                ] += row["n"]
        self._waiting.clear()
        for row in unknown.slice(max(0, unknown.num_rows - WAITING)).to_pylist():
            key = f"{row['topic_id']}/{row['partition']}"
            if _partition(key) in owned and row["offset"] > self._features.expired_until(key):
                self._waiting[vote_of(row)] = (key, json.loads(row["value"]))
        self._seen = dict.fromkeys(newest_votes(feedback, REMEMBERED))
        self._newest = max(self._features.live_times(self._counts).values(), default=None)
        self._changed, self.stale = set(self._counts), False

    def add(self, feedback: Sequence[tuple[str, FeedbackReceived]]) -> None:
        """Count new feedback, given by partition key, joined to its prediction in the online store."""
        fresh: dict[Vote, _Waiting] = {}
        for key, event in feedback:
            vote = vote_of(event.data.model_dump())
            if event.data.kind == "retract" or vote in self._seen:
                self.stale = True
                return
            self._seen[vote] = None
            fresh[vote] = (key, event.data.value)
        while len(self._seen) > REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._join(fresh)

    def join_waiting(self) -> None:
        """Join waiting feedback whose prediction has arrived."""
        self._join(dict(self._waiting))

    @property
    def waiting(self) -> int:
        """The number of effective feedback that is neither joined to a prediction nor expired."""
        return len(self._waiting)

    def totals(self) -> Counter[tuple[str, Verdict]]:
        """Return the number of feedback by model version and verdict, over the partitions owned."""
        return sum(self._counts.values(), Counter())

    def write(self, now: datetime) -> None:
        """Write changed counts to the online store, once a second at most.

        The store keeps the row with the latest time, so each write gets a later time even if the clock was set back.
        """
        beat = self._monotonic()
        if self._changed and beat >= self._write_again_at:
            at = now if self._newest is None else max(now, self._newest + ONLINE_TICK)
            self._features.write_live({key: _dump(self._counts[key]) for key in self._changed}, at)
            self._newest, self._write_again_at, self._changed = at, beat + WRITE_SECONDS, set()

    def _join(self, votes: Mapping[Vote, _Waiting]) -> None:
        known = self._features.look_up(list({prediction_id for prediction_id, _, _ in votes}))
        for vote, (key, value) in votes.items():
            prediction = known.get(vote[0])
            if prediction is None:
                if len(self._waiting) < WAITING:
                    self._waiting[vote] = (key, value)
                continue
            self._waiting.pop(vote, None)
            verdict = _verdict(_agreed(vote[1], value, prediction["predicted_label"]))
            self._counts.setdefault(key, Counter())[prediction["model_version"], verdict] += 1
            self._changed.add(key)


def live_counts(features: FeatureStore) -> dict[str, dict[Verdict, int]]:
    """Return how much feedback agreed, disagreed or did neither, by model version, as consumers last wrote it."""
    total: Counter[tuple[str, Verdict]] = Counter()
    for state in features.live(list(features.current_cut())).values():
        for version, by_verdict in json.loads(state).items():
            total.update({(version, verdict): n for verdict, n in by_verdict.items()})
    return _by_version(total)


def _partition(key: str) -> str:
    return key.rpartition("/")[2]


def _agreed(kind: str, value: Any, predicted_label: str) -> bool | None:
    if kind == "correction":
        return text_of(value) == predicted_label
    return bool(value == "up") if kind == "rating" else None


def _verdict(agreed: bool | None) -> Verdict:
    return "other" if agreed is None else "agreed" if agreed else "disagreed"


def _dump(counts: Mapping[tuple[str, Verdict], int]) -> str:
    return json.dumps(_by_version(counts))


def _by_version(counts: Mapping[tuple[str, Verdict], int]) -> dict[str, dict[Verdict, int]]:
    by_version: dict[str, dict[Verdict, int]] = {}
    for (version, verdict), n in sorted(counts.items()):
        by_version.setdefault(version, {})[verdict] = n
    return by_version
