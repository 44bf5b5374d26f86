"""Feedback: what people said, who says it, whom the rounds distrust, what waits for its prediction or could not be read.

Turns filters into rows of the event log. Texts and users are those stored: anonymised, and pseudonyms.
"""

from datetime import UTC, datetime

from starlette.responses import Response

from pipelines.feature_store.event_search import KINDS
from pipelines.feature_store.feedback_search import Cursor, Wanted
from schemas.targets import LABELLED
from services.console import actions
from services.console.visit import Visit
from services.ingestion.troubles import DEAD_LETTERS, UNREADABLE, sentence
from serving.http.access import pseudonym

PER_PAGE = 40
PEOPLE = 30
ROUNDS = 200


def search(visit: Visit) -> Response:
    """Search stored feedback by words of its text, person, kind, label and day."""
    user, day = visit.query("user"), visit.query("since")
    wanted = Wanted(
        words=visit.query("q"),
        user=_pseudonym(visit, user),
        kind=visit.query("kind") if visit.query("kind") in KINDS else "",
        label=visit.query("label"),
        since=_day(day),
        before=Cursor.read(visit.query("before")),
        limit=PER_PAGE,
    )
    page = visit.project.events.feedback(wanted)
    task = visit.project.settings.model.task
    return visit.page(
        "feedback.html",
        section="feedback",
        title="Feedback",
        tab="search",
        page=page,
        rows=page.rows,
        wanted=wanted,
        user=user,
        day=day,
        kinds=KINDS,
        labels=visit.project.registry.active_labels() if task in LABELLED else [],
    )


def person(visit: Visit) -> Response:
    """Show one person's record: how much, how often others agree, what a reviewer decided."""
    user = visit.part("user")
    events, registry = visit.project.events, visit.project.registry
    decision = next((one for one in registry.trust.decisions() if one.user == user), None)
    quarantined = [one for one in registry.history.quarantined(ROUNDS) if user in one[2]]
    return visit.page(
        "person.html",
        section="feedback",
        title="One person's feedback",
        user=user,
        record=events.agreement(user),
        rows=events.feedback(Wanted(user=user, limit=20)).rows,
        decision=decision,
        quarantined=quarantined[:5],
    )


def quarantine(visit: Visit) -> Response:
    """List the people whom recent rounds quarantined, and every decision in force."""
    registry = visit.project.registry
    decided = {one.user: one for one in registry.trust.decisions()}
    rounds: dict[str, list[str]] = {}
    for round_id, _, people in registry.history.quarantined(ROUNDS):
        for user in people:
            rounds.setdefault(user, []).append(round_id)
    waiting = {user: records for user, records in rounds.items() if user not in decided}
    return visit.page(
        "quarantine.html", section="feedback", title="Quarantine", tab="quarantine", waiting=waiting, decided=decided,
        busiest=visit.project.events.people(PEOPLE),
    )  # fmt: skip


def decide(visit: Visit) -> Response:
    """Release or reject the chosen people."""
    form = visit.form
    people = actions.decide_quarantine(
        visit.project, visit.who, visit.listed.get("user", []), decision=form.get("decision", ""),
        reason=form.get("reason", ""),
    )  # fmt: skip
    count = f"{len(people)} {'person' if len(people) == 1 else 'people'}"
    return visit.redirect("/feedback/quarantine", f"{count}: {form['decision']}. The next dataset follows it.")


def orphans(visit: Visit) -> Response:
    """List feedback whose prediction has not come, and what became a dead letter."""
    notes = [note.model_dump(mode="json") for note in visit.project.registry.ingestion()]
    dead = [text for note in notes if note["kind"] in (DEAD_LETTERS, UNREADABLE) and (text := sentence(note))]
    return visit.page(
        "orphans.html",
        section="feedback",
        title="Orphans and dead letters",
        tab="orphans",
        rows=visit.project.events.orphans(PER_PAGE),
        hours=visit.project.settings.feature_store.orphan_hours,
        dead=dead,
        letters=sum(int(note["count"]) for note in notes if note["kind"] == DEAD_LETTERS),
    )


def replay(visit: Visit) -> Response:
    """Publish the dead letters again that can be read now."""
    done = actions.replay(visit.project, visit.who)
    notice = f"{done.published} published again, {done.still_bad} still bad, {done.in_the_log} in the log already."
    return visit.redirect("/feedback/orphans", notice)


def letters(visit: Visit) -> Response:
    """List the dead letters that wait: the part of the page that the broker has to answer, so it comes after the page."""
    problem, waiting = "", []
    try:
        waiting = actions.waiting_letters(visit.project)
    except (actions.BadInput, OSError) as error:
        problem = str(error)
    return visit.page("letters.html", section="feedback", title="Dead letters", letters=waiting, problem=problem)


def settle_letter(visit: Visit) -> Response:
    """Replay or remove one dead letter."""
    position, project = visit.form.get("position", ""), visit.project
    if visit.part("action") == "remove":
        actions.remove_letter(project, visit.who, position, reason=visit.form.get("reason", ""))
        return visit.redirect("/feedback/orphans", "The dead letter is removed from the list and from every replay.")
    actions.replay_letter(project, visit.who, position)
    return visit.redirect("/feedback/orphans", "The dead letter is published again.")


def _pseudonym(visit: Visit, user: str) -> str:
    """Return the pseudonym of a user's name; a pseudonym stays itself."""
    if not user or (len(user) == 32 and all(c in "0123456789abcdef" for c in user)):
        return user
    return pseudonym(visit.project.keys.secret, user)


def _day(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None
    except ValueError:
        return None
