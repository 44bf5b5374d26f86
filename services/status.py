"""`ratchet status`: what serves, what learns, what waits.

Turns registry, feature store and the running `ratchet up` into one picture. It deliberately changes nothing, and says
what it could not see instead of failing.
"""

import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any

from schemas.artifacts import Champion, RoundRecord, WorkerHeartbeat
from schemas.events import utc_now
from schemas.settings import Settings
from services.projects import open_project, running_up
from serving.outbox_file import waiting
from serving.registry import Registry


def look(config: Path) -> tuple[dict[str, Any], list[str]]:
    """The status as JSON values and as lines."""
    settings = open_project(config)
    registry = Registry(settings.registry_url, settings.model.name)
    try:
        champion, unfinished, workers = registry.champion(), registry.unfinished_round(), registry.workers()
        ahead_s = registry.seconds_ahead()
        gathered, live, unseen = _gathered(settings, registry.last_cut())
    finally:
        registry.close()
    up = running_up(settings)
    lag = _lag(settings)
    value = {
        "model": settings.model.name,
        "up": up is not None,
        "serving": up["serving"] if up else None,
        "champion": champion.model_dump(mode="json") if champion else None,
        "workers": [worker.model_dump(mode="json") for worker in workers],
        "round": _round(unfinished),
        "feedback": gathered,
        "min_feedback": settings.triggers.min_feedback,
        "live_feedback": live,
        "not_yet_stored": lag,
        "clock_behind_s": round(ahead_s),
    }
    lines = [
        f"model      {settings.model.name}" + (f", up at {up['serving']}" if up else ", not up: `ratchet up`"),
        _champion_line(champion),
        *(_worker_line(worker, champion) for worker in workers),
        _round_line(unfinished),
        f"feedback   {unseen or f'{gathered} of {settings.triggers.min_feedback} since the last round'}",
        *(f"live       {version}: {_verdicts(counts)}" for version, counts in live.items()),
        *([f"lag        {lag} accepted events are not stored yet"] if lag is not None else []),
        *([f"clock      {clock_line(ahead_s)}"] if ahead_s else []),
    ]
    return value, lines


def _gathered(settings: Settings, cut: dict[str, int]) -> tuple[int | None, dict[str, dict[str, int]], str | None]:
    """Labelled feedback since a cut and the live counts by version, or why they cannot be counted."""
    from pipelines.features import FeatureStore
    from services.live_counts import live_counts

    try:
        features = FeatureStore(settings)
        return features.count_labelled_since(cut), live_counts(features), None
    except Exception as error:
        return None, {}, f"cannot be counted: {type(error).__name__}: {error}"


def _verdicts(counts: dict[str, int]) -> str:
    """In one order, without what did not happen. Feedback is no fair sample of traffic: no share is shown."""
    return ", ".join(f"{counts[v]} {v}" for v in ("agreed", "disagreed", "other") if counts.get(v))


def _lag(settings: Settings) -> int | None:
    """Events in this machine's outboxes, which keep them until they are stored (or, with a real Kafka, published)."""
    try:
        return waiting(settings.path(settings.serving.outbox))
    except sqlite3.Error:
        return None


def _round(unfinished: RoundRecord | None) -> dict[str, Any] | None:
    if unfinished is None:
        return None
    wanted = {"round_id", "state", "step", "progress", "pace", "reason", "attempts", "created_at", "heartbeat_at"}
    return unfinished.model_dump(mode="json", include=wanted)


def _champion_line(champion: Champion | None) -> str:
    if champion is None:
        return "champion   none yet: `ratchet up` trains one"
    return (
        f"champion   {champion.model_version}, generation {champion.generation}, by {champion.actor} "
        f"{_ago(champion.promoted_at)}"
    )


def _worker_line(worker: WorkerHeartbeat, champion: Champion | None) -> str:
    behind = champion is not None and worker.generation != champion.generation
    note = f"  ! {worker.error}" if worker.error else "  (behind)" if behind else ""
    return f"worker     {worker.worker} serves {worker.model_version or 'nothing yet'}{note}"


def _round_line(unfinished: RoundRecord | None) -> str:
    if unfinished is None:
        return "round      none"
    share = f" {unfinished.progress:.0%}" if unfinished.progress is not None else ""
    pace = f" ({unfinished.pace})" if unfinished.pace else ""
    alive = f", alive {_ago(unfinished.heartbeat_at)}" if unfinished.heartbeat_at else ""
    return f"round      {unfinished.round_id} {unfinished.state}: {unfinished.step or 'not begun'}{share}{pace}{alive}"


def clock_line(ahead_s: float) -> str:
    """Return what to say when the registry's newest time is `ahead_s` seconds ahead of this clock."""
    return (
        f"the registry holds times ahead of this clock by {_span(ahead_s)}: it was set back, or another machine's is ahead "
        "(check NTP); rounds go on"
    )


def _ago(moment: datetime) -> str:
    """How long ago a moment was; a moment ahead of this clock is said to be, for clocks can be set."""
    seconds = (utc_now() - moment).total_seconds()
    return f"{_span(seconds)} ago" if seconds > -1 else f"{_span(-seconds)} ahead of this clock"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
