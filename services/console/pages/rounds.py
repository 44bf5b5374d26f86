"""Rounds: the list with filters, and one round: its progress while it runs, its review once it is judged.

Turns records into pages. A round in progress refreshes itself; the review shows the report as it is, the recommendation, who
decided, and the buttons that decide.
"""

from functools import partial
from typing import Any

from starlette.responses import HTMLResponse, Response

from schemas.records import FINAL_STATES, RoundRecord, RoundState
from services.console import actions, charts, recommendation, round_files
from services.console.curves import MAIN, main_figure, standings
from services.console.guard import REPORT_POLICY
from services.console.visit import Visit

PER_PAGE = 40
GOING = frozenset({RoundState.CLAIMED, RoundState.RUNNING})
FILTERS: dict[str, frozenset[str]] = {
    "all": frozenset(),
    "open": frozenset({"claimed", "running", "awaiting approval", "settling"}),
    "promoted": frozenset({"promoted"}),
    "rejected": frozenset({"rejected"}),
    "insufficient": frozenset({"insufficient evidence"}),
    "other": frozenset({"failed", "skipped", "superseded"}),
}


def index(visit: Visit) -> Response:
    """List rounds, newest first, by state and page."""
    chosen = visit.query("state", "all") if visit.query("state", "all") in FILTERS else "all"
    before = visit.query("before")
    history, task = visit.project.registry.history, visit.project.settings.model.task
    rows = history.rounds_page(
        states=FILTERS[chosen], before=int(before) if before.isdecimal() else None, limit=PER_PAGE + 1
    )
    counts = history.round_counts()
    tabs = [
        (name, sum(counts.get(s, 0) for s in states) if states else sum(counts.values()))
        for name, states in FILTERS.items()
    ]
    unfinished = visit.project.registry.unfinished_round()
    return visit.page(
        "rounds.html",
        section="rounds",
        title="Rounds",
        rows=[record for _, record in rows[:PER_PAGE]],
        tabs=tabs,
        chosen=chosen,
        older=rows[PER_PAGE - 1][0] if len(rows) > PER_PAGE else None,
        is_first=not before,
        idle=unfinished is None,
        figure=partial(main_figure, task=task),
        metric=MAIN[task][1],
    )


def one(visit: Visit) -> Response:
    """Show one round."""
    record = visit.project.registry.round(visit.part("round_id"))
    if record.state in GOING:
        return _progress(visit, record)
    return _review(visit, record)


def _progress(visit: Visit, record: RoundRecord) -> Response:
    points = round_files.losses(visit.project, record)
    template = "round_live.html" if visit.is_partial else "round.html"
    return visit.page(
        template,
        section="rounds",
        title="Round in progress",
        r=record,
        progress=charts.meter(record.progress or 0.0, f"{record.progress or 0:.0%} of {record.step or 'the round'}"),
        curve=charts.lines({"training loss": points}, "seconds", "training loss so far") if len(points) > 1 else "",
        log=round_files.log_tail(visit.project, record),
    )


def _review(visit: Visit, record: RoundRecord) -> Response:
    if visit.is_partial:  # the round ended while its progress was on the screen
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    registry, task = visit.project.registry, visit.project.settings.model.task
    champion = registry.champion()
    live = champion.model_version if champion else None
    advice = recommendation.advise(record, live)
    decided = recommendation.decisions(registry.history.audit_about(record.round_id))
    waiting = [
        r for _, r in registry.history.rounds_page(states=FILTERS["open"], limit=2) if r.round_id != record.round_id
    ]
    return visit.page(
        "review.html",
        section="rounds",
        title=f"Review of {record.candidate_version or 'a round'}",
        r=record,
        advice=advice,
        decided=decided,
        trend=_trend(visit, record, task),
        metric=MAIN[task][1],
        has_report=round_files.report_page(visit.project, record) is not None,
        has_dataset=round_files.dataset_page(visit.project, record) is not None,
        can_approve=record.state is RoundState.AWAITING_APPROVAL and record.champion_version == live,
        can_overrule=_can_overrule(record, live),
        can_reject=record.state not in FINAL_STATES,
        can_retry=record.state in FINAL_STATES and registry.unfinished_round() is None,
        next_round=waiting[0] if waiting else None,
        log=round_files.log_tail(visit.project, record) if record.state is RoundState.FAILED else "",
        settling=registry.queue.progress(record.round_id) if record.settling else None,
    )


def _can_overrule(record: RoundRecord, live: str | None) -> bool:
    against = record.state.value in ("rejected", "insufficient evidence", "settling")
    return (
        against
        and record.candidate_version is not None
        and record.gate_report is not None
        and record.champion_version == live
    )


def _trend(visit: Visit, record: RoundRecord, task: str) -> Any:
    """Return the champions' curve with this round's candidate as its last point, if it is not a champion itself."""
    curve = standings(visit.project.registry, task, most=30)
    marks = [charts.Mark(s.generation, s.value, s.low, s.high, s.title) for s in curve]
    evaluation, (key, name) = record.evaluations.get("candidate"), MAIN[task]
    if evaluation and all(s.model_version != record.candidate_version for s in curve):
        measure = evaluation.measures.get(key)
        value = measure.value if measure else getattr(evaluation, key, None)
        if value is not None:
            at = marks[-1].x + 1 if marks else 1
            marks.append(
                charts.Mark(
                    at, value, measure.low if measure else None, measure.high if measure else None,
                    f"this candidate: {value:.3f}",
                )
            )  # fmt: skip
    return charts.steps(marks, "generation", f"{name} of the champions and this candidate") if len(marks) > 1 else ""


def report(visit: Visit) -> Response:
    """Send the round's report, as a document of its own."""
    return _document(round_files.report_page(visit.project, visit.project.registry.round(visit.part("round_id"))))


def dataset(visit: Visit) -> Response:
    """Send the round's dataset report, as a document of its own."""
    return _document(round_files.dataset_page(visit.project, visit.project.registry.round(visit.part("round_id"))))


def _document(path: Any) -> Response:
    if path is None:
        raise KeyError("this round has no such report: only judged rounds have one")
    return HTMLResponse(path.read_bytes(), headers={"content-security-policy": REPORT_POLICY})


def decide(visit: Visit) -> Response:
    """Approve, reject, stop, retry or start, by the last part of the path; then show what came of it."""
    project, person, reason = visit.project, visit.who, visit.form.get("reason", "")
    what = visit.part("action")
    if what == "start":
        record = actions.start(project, person, reason=reason)
        return visit.redirect(
            f"/rounds/{record.round_id}", "The round is claimed; the scheduler starts it within seconds."
        )
    round_id = visit.part("round_id")
    if what == "retry":
        record = actions.start(project, person, retry_of=round_id, reason=reason)
        return visit.redirect(
            f"/rounds/{record.round_id}", "A new round is claimed; the scheduler starts it within seconds."
        )
    if what == "stop":
        actions.stop(project, person, round_id, reason=reason)
        return visit.redirect(f"/rounds/{round_id}", "The round is stopped.")
    if what == "reject":
        actions.reject(project, person, round_id, reason=reason)
        return visit.redirect(f"/rounds/{round_id}", "The candidate is rejected. The champion stays.")
    done = actions.approve(project, person, round_id, reason=reason, overrule=what == "overrule")
    if done.champion is None:
        return visit.redirect(f"/rounds/{round_id}", f"Approved: {done.given} of {done.needed} people have.")
    return visit.redirect(
        f"/rounds/{round_id}",
        f"{done.champion.model_version} is the champion, generation {done.champion.generation}. Workers follow within seconds.",
    )
