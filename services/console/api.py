"""The JSON API under /api: everything that the pages show and do, with the same functions and the same checks.

Turns requests with a key (`Authorization: Bearer …`), or with a session's cookie and its CSRF token, into JSON. Its OpenAPI
document is /api/openapi.json. Errors are {"error", "detail"} like those of the inference API.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Body, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AwareDatetime
from starlette.responses import JSONResponse, Response

from pipelines.feature_store.feedback_search import Cursor, Wanted
from schemas.queue import LabelResult, QueueItem, QueueProgress
from schemas.records import AuditRow, Champion, RoundRecord, TrustDecision, VersionRecord
from services.console import actions, recommendation
from services.console.comparison import Compared, Comparisons
from services.console.guard import SAFE
from services.console.pages import overview
from services.console.pages.sign_in import address
from services.console.people import Forbidden, Person, Right, require
from services.console.project import Project
from services.console.refusals import refusal
from services.console.sessions import COOKIE
from services.console.sign_in import SignIn, TooManyTries
from services.console.visit import check_csrf

Id = Annotated[str, Path(max_length=128)]
Reason = Annotated[str, Body(embed=True, min_length=1, max_length=actions.MAX_REASON)]
Text = Annotated[str, Query(max_length=500)]
Position = Annotated[str, Body(embed=True, max_length=256)]
Limit = Annotated[int, Query(ge=1, le=500)]


class NotSignedIn(Forbidden):
    """The request carries no valid key and no valid session."""


def build(project: Project, sign_in: SignIn, comparisons: Comparisons) -> FastAPI:
    """Return the API as an ASGI app, to be mounted at /api."""
    api = FastAPI(
        title=f"Ratchet console of {project.settings.model.name}",
        version="1",
        docs_url=None,  # their pages would load scripts from elsewhere
        redoc_url=None,
        description="Every action of the console. Send a key as `Authorization: Bearer …`.",
    )
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(Exception, _refused)
    for kind in (ValueError, LookupError, RuntimeError, OSError):
        api.add_exception_handler(kind, _refused)
    _reads(api, project, sign_in, comparisons)
    _logs(api, project, sign_in)
    _decisions(api, project, sign_in)
    _labels(api, project, sign_in)
    return api


def _reads(api: FastAPI, project: Project, sign_in: SignIn, comparisons: Comparisons) -> None:
    viewer = Annotated[Person, Depends(_person(sign_in, Right.VIEW))]

    @api.get("/overview", summary="What serves, how good it is, what comes next, what is wrong")
    def show_overview(_: viewer) -> dict[str, Any]:
        return overview.as_json(overview.look(project))

    @api.get("/rounds", summary="Rounds, newest first")
    def rounds(
        _: viewer, state: Annotated[list[str] | None, Query()] = None, before: int | None = None, limit: Limit = 50
    ) -> dict[str, Any]:
        rows = project.registry.history.rounds_page(states=state or (), before=before, limit=limit)
        older = rows[-1][0] if len(rows) == limit else None
        return {"rounds": [record.model_dump(mode="json") for _, record in rows], "before": older}

    @api.get("/rounds/{round_id}", summary="One round with the recommendation and the decisions")
    def one_round(_: viewer, round_id: Id) -> dict[str, Any]:
        record, champion = project.registry.round(round_id), project.registry.champion()
        advice = recommendation.advise(record, champion.model_version if champion else None)
        decided = recommendation.decisions(project.registry.history.audit_about(round_id))
        return {
            "round": record.model_dump(mode="json"),
            "recommendation": advice.sentence,
            "next_step": advice.next_step,
            "decisions": [{"at": row.at, "by": row.actor, "what": what} for row, what in decided],
        }

    @api.get("/versions", summary="Model versions, newest first")
    def versions(_: viewer, limit: Limit = 200) -> list[VersionRecord]:
        return project.registry.history.recent_versions(limit)

    @api.get("/compare", summary="Two versions on the same rows; 202 while they are run")
    def compare(_: viewer, first: str, second: str, response: Response) -> Compared | None:
        done = comparisons.of(first, second)
        if done is None:
            response.status_code = 202
        return done


def _logs(api: FastAPI, project: Project, sign_in: SignIn) -> None:
    viewer = Annotated[Person, Depends(_person(sign_in, Right.VIEW))]

    @api.get(
        "/feedback", summary="Stored feedback, newest first; `before` continues, `is_cut`: the search's time was up"
    )
    def feedback(
        _: viewer,
        words: Text = "",
        user: Text = "",
        kind: Text = "",
        label: Text = "",
        since: AwareDatetime | None = None,
        before: Text = "",
        limit: Limit = 100,
    ) -> dict[str, Any]:
        wanted = Wanted(
            words=words, user=user, kind=kind, label=label, since=since, before=Cursor.read(before), limit=limit
        )
        page = project.events.feedback(wanted)
        return {"feedback": page.rows, "before": str(page.older) if page.older else None, "is_cut": page.is_cut}

    @api.get("/dead-letters", summary="Dead letters that nobody has replayed or removed, newest first")
    def dead_letters(_: viewer) -> list[dict[str, Any]]:
        return [asdict(one) for one in actions.waiting_letters(project)]

    @api.get("/audit", summary="The audit log, newest first")
    def audit(
        _: viewer, actor: str = "", action: str = "", before: int | None = None, limit: Limit = 100
    ) -> list[AuditRow]:
        return project.registry.history.audit_page(actor=actor, action=action, before=before, limit=limit)

    @api.get("/audit/faults", summary="Faults of the audit log's chain; empty when it is intact")
    def audit_faults(_: viewer) -> list[str]:
        return project.registry.verify_audit()


def _decisions(api: FastAPI, project: Project, sign_in: SignIn) -> None:
    decider = Annotated[Person, Depends(_person(sign_in, Right.DECIDE))]
    operator = Annotated[Person, Depends(_person(sign_in, Right.OPERATE))]

    @api.post("/rounds/{round_id}/approve", summary="Approve a candidate; `overrule` goes against its verdict")
    def approve(
        person: decider, round_id: Id, reason: Reason, overrule: Annotated[bool, Body(embed=True)] = False
    ) -> dict[str, Any]:
        done = actions.approve(project, person, round_id, reason=reason, overrule=overrule)
        champion = done.champion.model_dump(mode="json") if done.champion else None
        return {"given": done.given, "needed": done.needed, "champion": champion}

    @api.post("/rounds/{round_id}/reject", summary="Reject a candidate")
    def reject(person: decider, round_id: Id, reason: Reason) -> RoundRecord:
        return actions.reject(project, person, round_id, reason=reason)

    @api.post("/rounds/{round_id}/stop", summary="Stop a round that is claimed or running")
    def stop(person: operator, round_id: Id, reason: Reason) -> RoundRecord:
        return actions.stop(project, person, round_id, reason=reason)

    @api.post("/rounds/{round_id}/retry", summary="Claim a new round in place of one that ended", status_code=201)
    def retry(person: operator, round_id: Id, reason: Reason) -> RoundRecord:
        return actions.start(project, person, retry_of=round_id, reason=reason)

    @api.post("/rounds", summary="Claim a round now", status_code=201)
    def start(person: operator, reason: Reason) -> RoundRecord:
        return actions.start(project, person, reason=reason)

    @api.post("/versions/{version}/rollback", summary="Roll back to a version that has served")
    def roll_back(person: decider, version: Id, reason: Reason) -> Champion:
        return actions.roll_back(project, person, version, reason=reason)

    @api.post("/quarantine", summary="Release people from quarantine, or reject what they say")
    def quarantine(
        person: operator,
        people: Annotated[list[str], Body(min_length=1, max_length=1000)],
        decision: Annotated[Literal["released", "rejected", "undecided"], Body()],
        reason: Reason,
    ) -> list[TrustDecision]:
        actions.decide_quarantine(project, person, people, decision=decision, reason=reason)
        return project.registry.trust.decisions()

    @api.post("/dead-letters/replay", summary="Publish dead letters that can be read now again")
    def replay(person: operator) -> dict[str, int]:
        return actions.replay(project, person).as_dict()

    @api.post("/dead-letters/replay-one", summary="Publish one dead letter again", status_code=204)
    def replay_one(person: operator, position: Position) -> None:
        actions.replay_letter(project, person, position)

    @api.post("/dead-letters/remove-one", summary="Leave one dead letter out of every replay", status_code=204)
    def remove_one(person: operator, position: Position, reason: Reason) -> None:
        actions.remove_letter(project, person, position, reason=reason)


def _labels(api: FastAPI, project: Project, sign_in: SignIn) -> None:
    labeller = Annotated[Person, Depends(_person(sign_in, Right.LABEL))]
    decider = Annotated[Person, Depends(_person(sign_in, Right.DECIDE))]

    @api.get("/queue/next", summary="Lease the next item to label; null if none waits")
    def next_item(person: labeller) -> QueueItem | None:
        return project.registry.queue.next(person.name)

    @api.get("/queue/progress", summary="How far a round's labels are; without a round, those of the audit sample")
    def progress(_: labeller, round_id: str | None = None) -> QueueProgress:
        return project.registry.queue.progress(round_id)

    @api.post("/queue/{item_id}/label", summary="Label an item")
    def label(
        person: labeller, item_id: Id, label: Annotated[str | float | list[str], Body(embed=True)]
    ) -> LabelResult:
        return actions.label(project, person, item_id, label)

    @api.post("/labels", summary="Add a label to the taxonomy", status_code=201)
    def add_label(person: decider, label: Annotated[str, Body(embed=True, max_length=128)]) -> dict[str, str]:
        return {"label": actions.add_label(project, person, label)}

    @api.post("/queue/{item_id}/skip", summary="Pass an item on; `unsure`: nobody could tell from the text")
    def skip(person: labeller, item_id: Id, unsure: Annotated[bool, Body(embed=True)] = False) -> dict[str, str]:
        return {"state": actions.skip(project, person, item_id, unsure=unsure).value}


def _person(sign_in: SignIn, right: Right) -> Callable[[Request], Person]:
    """Return the dependency that says who asks, and refuses who lacks the right."""

    def person(request: Request) -> Person:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            visitor = _by_key(sign_in, key.strip(), address(request))
        else:
            known, session = sign_in.person_of(request.cookies.get(COOKIE, ""))
            if known is None:
                raise NotSignedIn("send a key as Authorization: Bearer …, or sign in")
            if request.method not in SAFE:
                check_csrf(sign_in, session, request.headers.get("x-csrf-token", ""))
            visitor = known
        require(visitor, right)
        return visitor

    return person


def _by_key(sign_in: SignIn, key: str, caller: str) -> Person:
    known = sign_in.person_with(key)
    if known is None:
        if wait_s := sign_in.count_wrong(caller):
            raise TooManyTries(wait_s)
        raise NotSignedIn("the key opens nothing: it may be mistyped, revoked or renewed")
    return known[0]


async def _refused(_: Request, error: Exception) -> JSONResponse:
    status, sentence = refusal(error)
    status = 401 if isinstance(error, NotSignedIn) else status
    return JSONResponse({"error": sentence, "detail": []}, status)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    detail = [
        {"field": ".".join(str(part) for part in one["loc"][1:]), "error": one["msg"]} for one in error.errors()[:20]
    ]
    return JSONResponse({"error": "the request is not valid", "detail": detail}, 422)
