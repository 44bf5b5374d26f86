"""Overview: what serves, how good it is, what comes next, what is wrong.

Turns the registry, the event log and the state of `ratchet up` into one page that refreshes itself. The API returns the same
values. A part that cannot be read is an alarm, never an error page.
"""

import contextlib
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import Response

from pipelines.traffic_drift import TrafficDrift
from schemas.records import Champion, RoundRecord, RoundState, WorkerHeartbeat
from schemas.setting_groups import TriggerSettings
from services.console import charts
from services.console.curves import (
    MAIN,
    LiveAccuracy,
    Standing,
    drift_sentence,
    live_accuracy,
    live_drift,
    standings,
)
from services.console.project import Project
from services.console.visit import Visit
from services.ingestion.feedback_counts import kept
from services.ingestion.troubles import lasting

MINUTES = 60
AUDIT_KEPT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What the overview shows."""

    champion: Champion | None
    workers: list[WorkerHeartbeat]
    behind: int
    up: bool
    traffic: list[int] = field(default_factory=list)
    feedback_today: int | None = None
    labelled: int | None = None
    triggers: TriggerSettings
    curve: list[Standing]
    live: LiveAccuracy | None
    drift: TrafficDrift | None
    unfinished: RoundRecord | None
    waiting: RoundRecord | None
    settling: RoundRecord | None
    rounds: list[RoundRecord]
    alarms: list[str]

    @property
    def is_converged(self) -> bool:
        """Return whether every living worker serves the champion."""
        return bool(self.workers) and not self.behind

    @property
    def due(self) -> float:
        """Return the share of the feedback that starts a round."""
        return min(1.0, (self.labelled or 0) / self.triggers.min_feedback)


def look(project: Project) -> Overview:
    """Return the present state."""
    registry, settings, up = project.registry, project.settings, project.up()
    champion, workers = registry.champion(), registry.workers()
    behind = sum(1 for worker in workers if champion and worker.generation != champion.generation)
    unfinished = registry.unfinished_round()
    alarms = _alarms(project, workers, up)
    traffic, today = _traffic(project, alarms)
    counts = kept(settings)
    waiting = unfinished if unfinished and unfinished.state is RoundState.AWAITING_APPROVAL else None
    return Overview(
        champion=champion,
        workers=workers,
        behind=behind,
        up=bool(up),
        traffic=traffic,
        feedback_today=today,
        labelled=counts.labelled if counts and counts.cut == registry.last_cut() else None,
        triggers=TriggerSettings.model_validate(up["triggers"]) if "triggers" in up else settings.triggers,
        curve=project.kept.get(
            "curve", champion, 30, time.monotonic(), lambda: standings(registry, settings.model.task)
        ),
        live=_live(project, champion, alarms),
        drift=_drift(project, alarms),
        unfinished=None if waiting else unfinished,
        waiting=waiting,
        settling=registry.settling_round(),
        rounds=[record for _, record in registry.history.rounds_page(limit=6)],
        alarms=alarms,
    )


def _traffic(project: Project, alarms: list[str]) -> tuple[list[int], int | None]:
    """Return predictions by minute, the newest last, and today's feedback; an alarm where the log cannot be read."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)

    def read() -> tuple[list[int], int]:
        by_minute = project.events.traffic("predictions", now, now - timedelta(minutes=MINUTES), 60)
        today = project.events.traffic("feedback", now, midnight - timedelta(microseconds=1), 86_400)
        return [by_minute.get(ago, 0) for ago in range(MINUTES - 1, -1, -1)], sum(today.values())

    try:
        read_now: tuple[list[int], int] = project.kept.get("traffic", None, 4, time.monotonic(), read)
    except (OSError, ValueError) as error:
        alarms.append(f"the event log cannot be read: {error}")
        return [], None
    return read_now


def _live(project: Project, champion: Champion | None, alarms: list[str]) -> LiveAccuracy | None:
    """Return the live accuracy on the audit sample, where people label classes; None elsewhere."""
    if champion is None or project.settings.model.task != "classification":
        return None
    version = champion.model_version

    def read() -> LiveAccuracy | None:
        return live_accuracy(project.registry, project.events, version)

    try:
        seen: LiveAccuracy | None = project.kept.get("live", version, 15, time.monotonic(), read)
    except (OSError, ValueError) as error:
        alarms.append(f"the live accuracy cannot be read: {error}")
        return None
    return seen


def _drift(project: Project, alarms: list[str]) -> TrafficDrift | None:
    """Return the drift of traffic; an alarm beyond the limit, and where the log cannot be read."""
    limit = project.settings.console.drift
    try:
        seen = live_drift(project)
    except (OSError, ValueError) as error:
        alarms.append(f"drift cannot be looked at: {error}")
        return None
    if seen and limit is not None and seen.psi > limit:
        alarms.append(drift_sentence(seen, limit))
    return seen


def _alarms(project: Project, workers: list[WorkerHeartbeat], up: dict[str, Any]) -> list[str]:
    registry = project.registry
    notes = [note.model_dump(mode="json") for note in registry.ingestion()]
    faults = project.kept.get("audit", None, AUDIT_KEPT_S, time.monotonic(), registry.verify_audit)
    silent = bool(up) and not workers
    return [
        *(f"{name} {what}" for name, what in (up.get("trouble") or {}).items()),
        *(f"worker {worker.worker} on {worker.host}: {worker.error}" for worker in workers if worker.error),
        *(["no worker has reported for 30 s: see state/logs/serving.log"] if silent else []),
        *lasting(notes, datetime.now(UTC), up=bool(up)),
        *faults,
    ]


def page(visit: Visit) -> Response:
    """Show the overview; htmx asks for its changing part alone."""
    seen, task = look(visit.project), visit.project.settings.model.task
    template = "overview_live.html" if visit.is_partial else "overview.html"
    return visit.page(
        template, section="overview", title="Overview", o=seen, metric=MAIN[task][1], **_drawn(seen, MAIN[task][1])
    )


def _drawn(seen: Overview, metric: str) -> dict[str, Any]:
    curve = seen.curve
    marks = [charts.Mark(one.generation, one.value, one.low, one.high, one.title) for one in curve]
    eces = [one for one in curve if one.ece is not None]
    calibration = [
        charts.Mark(one.generation, one.ece or 0.0, title=f"generation {one.generation}: ECE {one.ece:.3f}")
        for one in eces
    ]
    limits = [charts.Mark(one.generation, one.ece_limit) for one in eces if one.ece_limit is not None]
    ago = [f"{n} min ago" if n else "this minute" for n in range(MINUTES - 1, -1, -1)]
    titles = [f"{count} predictions, {when}" for count, when in zip(seen.traffic, ago, strict=False)]
    return {
        "curve": charts.steps(marks, "generation", f"{metric} of each champion") if marks else "",
        "calibration": charts.steps(calibration, "generation", "ECE of each champion", limits) if calibration else "",
        "strip": charts.bars(seen.traffic, f"{sum(seen.traffic)} predictions in the last hour", titles)
        if seen.traffic
        else "",
        "meter": charts.meter(seen.due, f"{seen.due:.0%} of the feedback that starts a round"),
        "progress": charts.meter(seen.unfinished.progress or 0, "progress of this step") if seen.unfinished else "",
    }


def as_json(seen: Overview) -> dict[str, Any]:
    """Return the overview's values for the API."""
    return {
        "champion": seen.champion.model_dump(mode="json") if seen.champion else None,
        "converged": seen.is_converged,
        "workers": [worker.model_dump(mode="json") for worker in seen.workers],
        "predictions_last_hour": sum(seen.traffic) if seen.traffic else None,
        "feedback_today": seen.feedback_today,
        "labelled_feedback": seen.labelled,
        "min_feedback": seen.triggers.min_feedback,
        "unfinished_round": (seen.waiting or seen.unfinished).round_id if seen.waiting or seen.unfinished else None,  # type: ignore[union-attr]
        "settling_round": seen.settling.round_id if seen.settling else None,
        "live_accuracy": {"value": seen.live.value, "interval": seen.live.interval, "n": seen.live.n}
        if seen.live
        else None,
        "drift": asdict(seen.drift) if seen.drift else None,
        "curve": [asdict(one) for one in seen.curve],
        "alarms": seen.alarms,
    }


def changes(project: Project) -> str:
    """Return a text that differs whenever the overview or an empty queue would; reading it costs a few milliseconds."""
    registry = project.registry
    champion, unfinished = registry.champion(), registry.unfinished_round()
    beat = (unfinished.round_id, unfinished.state, unfinished.step, unfinished.progress) if unfinished else None
    settling = registry.settling_round()
    labels = [registry.queue.progress(settling.round_id if settling else None), registry.queue.progress()]
    workers = [(worker.worker, worker.generation, worker.error) for worker in registry.workers()]
    counts = kept(project.settings)
    events: object = None
    with contextlib.suppress(OSError):
        events = project.events.version()
    return repr((champion and champion.generation, beat, labels, workers, counts and counts.labelled, events))
