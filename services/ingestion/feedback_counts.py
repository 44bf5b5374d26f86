"""Counts of feedback for `ratchet status`, kept in a file so that looking costs no second.

Turns the feature store into how much labelled feedback lies beyond the last round's cut, and the live counts by model version. To
open the store takes seconds; the training scheduler, which has it open, keeps the counts in a file at its ticks. The file
names the version of the event log that it counted, so that a count that is not of now is noticed, and counted anew.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.feature_store.store import FeatureStore
    from serving.registry.registry import Registry

FILE = "state/feedback-counts.json"
KEEP_S = 5.0  # seconds between two counts while feedback streams in
BEHIND_S = 20.0  # how old a count may be while `up` runs and feedback streams in
_COMMIT = re.compile(r"(\d{20})\.json")


@dataclass(frozen=True)
class FeedbackCounts:
    """Labelled feedback beyond a cut and live counts by model version, as of a version of the event log."""

    version: int
    cut: dict[str, int]
    labelled: int = 0
    live: dict[str, dict[str, int]] = field(default_factory=dict)
    at: float = 0.0  # Unix seconds


def counts(settings: Settings, cut: Mapping[str, int], *, up: bool) -> FeedbackCounts:
    """Return the counts as of now; while `up` runs, those of its last look. Raises what opening the feature store raises."""
    newest = _newest(settings)
    if (newest is None and _local(settings) is not None) or newest == 0:
        return FeedbackCounts(0, dict(cut))  # no event log yet, or one that was made and holds nothing
    kept = _kept(settings)
    if kept and kept.cut == cut:
        fresh = up and abs(time.time() - kept.at) < BEHIND_S
        if fresh or (newest is not None and kept.version == newest):
            return kept
    from pipelines.feature_store.store import FeatureStore

    return count(settings, FeatureStore(settings), cut)


def count(settings: Settings, features: "FeatureStore", cut: Mapping[str, int]) -> FeedbackCounts:
    """Return the counts, freshly made, and keep them; a folder that cannot be written keeps none."""
    from services.ingestion.live_counts import live_counts

    version = features.log.version("feedback")  # before counting: what comes meanwhile is noticed later
    labelled = features.count_labelled_since(dict(cut))
    found = FeedbackCounts(version, dict(cut), labelled, live_counts(features), time.time())
    path = settings.path(FILE)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        beside.write_text(json.dumps(asdict(found)), encoding="utf-8")
        beside.replace(path)
    return found


class CountKeeper:
    """Keeps the counts of a scheduler's feature store, which it opens and looks at after each tick."""

    def __init__(self, settings: Settings, registry: "Registry") -> None:
        self._settings = settings
        self._registry = registry
        self._features: FeatureStore | None = None
        self._again_at = 0.0

    def open(self) -> "FeatureStore":
        """The feature store. Raises OSError when it cannot be opened."""
        from pipelines.feature_store.store import FeatureStore

        self._features = FeatureStore(self._settings)
        return self._features

    def keep(self) -> None:
        """Count, every few seconds. Never raises: `ratchet status` counts by itself where no count is kept."""
        if self._features is not None and time.monotonic() >= self._again_at:
            with contextlib.suppress(Exception):
                count(self._settings, self._features, self._registry.last_cut())
            self._again_at = time.monotonic() + KEEP_S


def _kept(settings: Settings) -> FeedbackCounts | None:
    try:
        return FeedbackCounts(**json.loads(settings.path(FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _local(settings: Settings) -> Path | None:
    """The event log's folder, unless it lies in an object store."""
    location = settings.location(settings.feature_store.event_log)
    return None if "://" in location else Path(location)


def _newest(settings: Settings) -> int | None:
    """The newest version of the feedback table, by the names of its commits; None if there is none to be seen."""
    folder = _local(settings)
    try:
        names = os.listdir(folder / "feedback/_delta_log") if folder else []
    except OSError:
        return None
    return max((int(found[1]) for name in names if (found := _COMMIT.fullmatch(name))), default=None)
