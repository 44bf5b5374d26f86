"""Counts of feedback for `ratchet status`, cached in a file.

Turns the feature store into the number of labelled feedback beyond the last round's cut, and live counts by model version.
Opening the store takes seconds, so the training scheduler, which has it open, writes the counts to a file at its ticks. The
file names the version of the event log that was counted; a stale count is noticed and made again.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.feature_store.log_version import newest_version
from schemas.settings import Settings
from serving.atomic_write import atomic_write

if TYPE_CHECKING:
    from pipelines.feature_store.store import FeatureStore
    from serving.registry.registry import Registry

FILE = "state/feedback-counts.json"
KEEP_S = 5.0  # seconds between two counts while feedback streams in
SHARE = 0.1  # of the time, that counting takes at most
BEHIND_S = 20.0  # greatest age of a count while `up` runs and feedback streams in


@dataclass(frozen=True)
class FeedbackCounts:
    """Labelled feedback beyond a cut and live counts by model version, as of a version of the event log."""

    version: int
    cut: dict[str, int]
    labelled: int = 0
    live: dict[str, dict[str, int]] = field(default_factory=dict)
    at: float = 0.0  # Unix seconds
    seconds: float = 0.0  # that counting took


def counts(settings: Settings, cut: Mapping[str, int], *, up: bool) -> FeedbackCounts:
    """Return the current counts, or cached ones while `up` runs. Raises what opening the feature store raises."""
    folder = _local(settings)
    newest = newest_version(folder / "feedback") if folder else None
    if (newest is None and folder is not None) or newest == 0:
        return FeedbackCounts(0, dict(cut))  # no event log yet, or an empty one
    cached = kept(settings)
    if cached and cached.cut == cut:
        fresh = up and abs(time.time() - cached.at) < BEHIND_S + cached.seconds / SHARE
        if fresh or (newest is not None and cached.version == newest):
            return cached
    from pipelines.feature_store.store import FeatureStore

    return count(settings, FeatureStore(settings), cut)


def count(settings: Settings, features: "FeatureStore", cut: Mapping[str, int]) -> FeedbackCounts:
    """Count, write the counts to the cache file if that is possible, and return them."""
    from services.ingestion.live_counts import live_counts

    began = time.monotonic()
    version = features.log.version("feedback")  # before counting, so that later commits make this count stale
    labelled = features.count_labelled_since(dict(cut))
    live = live_counts(features)
    counted = FeedbackCounts(version, dict(cut), labelled, live, time.time(), time.monotonic() - began)
    with contextlib.suppress(OSError):
        atomic_write(settings.path(FILE), json.dumps(asdict(counted)))
    return counted


class CountKeeper:
    """Opens the scheduler's feature store and caches its counts after each tick."""

    def __init__(self, settings: Settings, registry: "Registry") -> None:
        self._settings = settings
        self._registry = registry
        self._features: FeatureStore | None = None
        self._again_at = 0.0

    def open(self) -> "FeatureStore":
        """Open and return the feature store. Raises OSError."""
        from pipelines.feature_store.store import FeatureStore

        self._features = FeatureStore(self._settings)
        return self._features

    def keep(self) -> None:
        """Count every KEEP_S seconds, or a tenth of the time. Never raises: without a count, `ratchet status` makes one."""
        began = time.monotonic()
        if self._features is not None and began >= self._again_at:
            with contextlib.suppress(Exception):
                count(self._settings, self._features, self._registry.last_cut())
            self._again_at = time.monotonic() + max(KEEP_S, (time.monotonic() - began) / SHARE)


def kept(settings: Settings) -> FeedbackCounts | None:
    """Return the counts of the cache file, however old; None if there are none."""
    try:
        return FeedbackCounts(**json.loads(settings.path(FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _local(settings: Settings) -> Path | None:
    """Return the event log's folder; None if it is in an object store."""
    location = settings.location(settings.feature_store.event_log)
    return None if "://" in location else Path(location)
