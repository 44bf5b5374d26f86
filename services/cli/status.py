"""`ratchet status`: what serves, which round runs, how much feedback waits.

Turns registry, feature store and the state of `ratchet up` into values and lines, within half a second: SQLAlchemy and Feast are
imported only when needed. A part that cannot be read is reported as such.
"""

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.consumer_reports import REPORTED
from schemas.printable import span
from schemas.setting_groups import TriggerSettings
from schemas.settings import Settings
from services.ingestion.feedback_counts import FeedbackCounts, counts
from services.ingestion.troubles import counted, lasting
from services.projects import open_project, running_up
from services.rounds.disk_room import nearly_full
from serving.messaging.outbox_store import waiting
from serving.registry.glance import glance

LONGEST_DETAIL = 100  # characters of why the last round ended as it did


def look(config: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the status as JSON values and as lines."""
    settings = open_project(config)
    seen, up, lag = glance(settings.registry_url, settings.model.name), running_up(settings), _lag(settings)
    # The triggers that `up` started with: its environment may differ from this shell's.
    triggers = TriggerSettings.model_validate(up["triggers"]) if up and "triggers" in up else settings.triggers
    gathered, unseen = _gathered(settings, seen.last_cut, up=up is not None)
    trouble: dict[str, str] = dict(up.get("trouble", {})) if up else {}
    if full := nearly_full(settings):
        trouble["disk"] = full
    wrong = lasting(seen.ingestion, datetime.now(UTC), up=up is not None)
    value = {
        "model": settings.model.name,
        "up": up is not None,
        "serving": up["serving"] if up else None,
        "champion": seen.champion,
        "workers": seen.workers,
        "round": _round(seen.unfinished),
        "last_round": _last(seen.last),
        "settling": _settling(seen.settling),
        "feedback": gathered.labelled if gathered else None,
        "min_feedback": triggers.min_feedback,
        "triggers": triggers.model_dump(),
        "live_feedback": gathered.live if gathered else {},
        "not_yet_stored": lag,
        "trouble": trouble,
        "ingestion": {"now": wrong, "counts": [note for note in seen.ingestion if note["kind"] != REPORTED]},
        "clock_behind_s": round(seen.ahead_s),
    }
    labelled = f"{gathered.labelled} of {triggers.min_feedback} since the last round" if gathered else unseen
    lines = [
        f"model      {settings.model.name}" + (f", up at {up['serving']}" if up else ", not up: `ratchet up`"),
        _champion_line(seen.champion),
        *(_worker_line(worker, seen.champion) for worker in seen.workers),
        round_line(seen.unfinished, seen.last),
        *([settling_line(seen.settling)] if seen.settling else []),
        f"feedback   {labelled}",
        f"triggers   {triggers_line(triggers)}",
        *(f"live       {version}: {_verdicts(n)}" for version, n in (gathered.live if gathered else {}).items()),
        *([f"lag        {lag} accepted events are not stored yet"] if lag is not None else []),
        *(f"trouble    {name} {what}" for name, what in trouble.items()),
        *(f"trouble    {what}" for what in wrong),
        *(f"ingestion  {what}" for what in counted(seen.ingestion)),
        *([f"clock      {clock_line(seen.ahead_s)}"] if seen.ahead_s else []),
    ]
    return value, lines


def triggers_line(triggers: TriggerSettings) -> str:
    """Return when a round starts by itself, in one line."""
    due = [f"{triggers.min_feedback} labelled feedback"]
    due += [f"{triggers.max_age:g} hours after the last round"] if triggers.max_age else []
    due += [f"cron {triggers.cron!r} in UTC"] if triggers.cron else []
    return "a round starts at " + ", or ".join(due)


def _gathered(settings: Settings, cut: Mapping[str, int], *, up: bool) -> tuple[FeedbackCounts | None, str | None]:
    """Return the counts of feedback, or why it cannot be counted."""
    try:
        return counts(settings, cut, up=up), None
    except Exception as error:
        return None, f"cannot be counted: {type(error).__name__}: {error}"


def _verdicts(counted: Mapping[str, int]) -> str:
    """Return the counts above zero. No share is shown: feedback is not a representative sample of traffic."""
    return ", ".join(f"{counted[v]} {v}" for v in ("agreed", "disagreed", "other") if counted.get(v))


def _lag(settings: Settings) -> int | None:
    """Return the number of events in this machine's outboxes: not stored yet, or with a real Kafka not published."""
    try:
        return waiting(settings.path(settings.serving.outbox))
    except sqlite3.Error:
        return None


def _round(unfinished: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if unfinished is None:
        return None
    wanted = ("round_id", "state", "step", "progress", "pace", "reason", "attempts", "created_at", "heartbeat_at")
    return {name: unfinished.get(name) for name in wanted}


def _settling(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {"round_id": record["round_id"], "candidate_version": record["candidate_version"], **record["settling"]}


def settling_line(record: Mapping[str, Any]) -> str:
    """Return how far the labels of the settling round are, in one line."""
    plan = record["settling"]
    about = f" of about {plan['about']}" if plan.get("about") is not None else ""
    label = "`ratchet queue next`" if plan["disagreements"] else "no disagreement in new traffic yet"
    return f"settling   {record['round_id']}: {plan['labels']}{about} labels, {label}"


def _champion_line(champion: Mapping[str, Any] | None) -> str:
    if champion is None:
        return "champion   none yet: `ratchet up` trains one"
    made = f"generation {champion['generation']}, by {champion['actor']} {_ago(champion['promoted_at'])}"
    return f"champion   {champion['model_version']}, {made}"


def _worker_line(worker: Mapping[str, Any], champion: Mapping[str, Any] | None) -> str:
    behind = champion is not None and worker["generation"] != champion["generation"]
    note = f"  ! {worker['error']}" if worker["error"] else "  (behind)" if behind else ""
    return f"worker     {worker['worker']} serves {worker['model_version'] or 'nothing yet'}{note}"


def _last(ended: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what became of the newest round, if it has ended."""
    if ended is None or ended.get("finished_at") is None:
        return None
    wanted = ("round_id", "state", "detail", "candidate_version", "finished_at")
    return {name: ended.get(name) for name in wanted}


def round_line(unfinished: Mapping[str, Any] | None, last: Mapping[str, Any] | None = None) -> str:
    """Return an unfinished round's state, progress and heartbeat in one line, or how the last round ended."""
    if unfinished is None and (ended := _last(last)):
        detail = " ".join((ended["detail"] or "").split())
        shown = f": {detail[:LONGEST_DETAIL].rstrip()}{'...' * (len(detail) > LONGEST_DETAIL)}" if detail else ""
        return f"round      none now; {ended['round_id']} ended {_ago(ended['finished_at'])}, {ended['state']}{shown}"
    if unfinished is None:
        return "round      none"
    share = f" {unfinished['progress']:.0%}" if unfinished.get("progress") is not None else ""
    pace = f" ({shown})" if (shown := _pace(unfinished.get("pace"))) else ""
    alive = f", alive {_ago(unfinished['heartbeat_at'])}" if unfinished.get("heartbeat_at") else ""
    step = unfinished.get("step") or "not begun"
    return f"round      {unfinished['round_id']} {unfinished['state']}: {step}{share}{pace}{alive}"


def _pace(pace: Mapping[str, Any] | None) -> str:
    if not pace:
        return ""
    from schemas.records import Pace

    return str(Pace.model_validate(pace))


def clock_line(ahead_s: float) -> str:
    """Return a warning that the registry's newest time is `ahead_s` seconds ahead of this clock."""
    return (
        f"the registry holds times {span(ahead_s)} ahead of this clock: this clock was set back, or another machine's is ahead "
        "(check NTP); rounds go on"
    )


def _ago(time: str) -> str:
    """Return how long ago a time was, or how far it is ahead of this clock."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    return f"{span(seconds)} ago" if seconds > -1 else f"{span(-seconds)} ahead of this clock"
