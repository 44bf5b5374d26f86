"""The console's ASGI app: its routes, and what surrounds them.

Turns a `Project` into an app. console_server.py serves it; tests call it. Pages check sign-in, right and CSRF token in visit.py;
the guard bounds requests and sets headers.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from services.console import api
from services.console.comparison import Comparisons
from services.console.guard import Guard
from services.console.live_events import Streams
from services.console.oidc import Oidc
from services.console.pages import audit, feedback, models, overview, queue, rounds, sign_in, try_it
from services.console.people import Right
from services.console.project import Project
from services.console.refusals import TITLES, refusal
from services.console.rendering import FOLDER, render
from services.console.sessions import COOKIE, Sessions
from services.console.sign_in import SignIn
from services.console.visit import Page, Visit, answering

YEAR_S = 31_536_000
OIDC_PATH = "/sign-in/oidc/return"


class Files(StaticFiles):
    """Static files, which browsers keep: their addresses change with their content."""

    def file_response(self, *arguments: Any, **more: Any) -> Response:
        """Return a file with a long life."""
        answer = super().file_response(*arguments, **more)
        answer.headers["cache-control"] = f"public, max-age={YEAR_S}, immutable"
        return answer


def build(project: Project, signing: SignIn | None = None, issuer: Oidc | None = None) -> Starlette:
    """Return the app of a project; tests bring a sign-in or an issuer of their own."""
    settings = project.settings.console
    signing = signing or SignIn(
        project.keys, project.operator_key, project.registry, Sessions(project.keys.secret, settings.session_hours)
    )
    if settings.oidc_issuer and issuer is None:
        issuer = Oidc(project.settings, project.keys.secret, f"{project.console_url()}{OIDC_PATH}")
    comparisons = Comparisons(project)
    streams = Streams(partial(overview.changes, project))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        streams.stopping = True

    async def events(request: Request) -> Response:
        person, _ = signing.person_of(request.cookies.get(COOKIE, ""))
        if person is None or not person.may(Right.VIEW):
            return PlainTextResponse("sign in first", 403)
        return streams.response(request)

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive")

    def page(path: str, shown: Page, right: Right | None = Right.VIEW, method: str = "GET") -> Route:
        return Route(path, answering(shown, right, project, signing, comparisons, issuer), methods=[method])

    routes = [
        Mount("/static", Files(directory=FOLDER / "static")),
        Mount("/api", api.build(project, signing, comparisons)),
        Route("/livez", livez),
        Route("/events", events),
        *_pages(page),
    ]
    public = Middleware(Guard, public_url=settings.public_url, secure=settings.is_secure)
    handlers: dict[Any, Any] = {Exception: _refuse(project, signing), HTTPException: _refuse(project, signing)}
    for kind in (ValueError, LookupError, RuntimeError, OSError):
        handlers[kind] = handlers[Exception]
    return Starlette(
        routes=routes,
        middleware=[public, Middleware(GZipMiddleware, minimum_size=1000)],
        exception_handlers=handlers,
        lifespan=lifespan,
    )


def _pages(page: Callable[..., Route]) -> list[Route]:
    decide, operate, label = Right.DECIDE, Right.OPERATE, Right.LABEL
    return [
        page("/", overview.page),
        page("/rounds", rounds.index),
        page("/rounds/{action:str}", rounds.decide, operate, "POST"),
        page("/rounds/{round_id:str}", rounds.one),
        page("/rounds/{round_id:str}/report", rounds.report),
        page("/rounds/{round_id:str}/dataset", rounds.dataset),
        page("/rounds/{round_id:str}/{action:str}", rounds.decide, decide, "POST"),
        page("/queue", queue.page, label),
        page("/queue/{item_id:str}", queue.answer, label, "POST"),
        page("/models", models.index),
        page("/models/compare", models.compare),
        page("/models/{version:str}", models.one),
        page("/models/{version:str}/files/{name:path}", models.download),
        page("/models/{version:str}/rollback", models.roll_back, decide, "POST"),
        page("/feedback", feedback.search),
        page("/feedback/quarantine", feedback.quarantine),
        page("/feedback/quarantine", feedback.decide, operate, "POST"),
        page("/feedback/orphans", feedback.orphans),
        page("/feedback/replay", feedback.replay, operate, "POST"),
        page("/feedback/letters", feedback.letters),
        page("/feedback/letters/{action:str}", feedback.settle_letter, operate, "POST"),
        page("/feedback/people/{user:str}", feedback.person),
        page("/audit", audit.page),
        page("/audit.csv", audit.export),
        page("/try", try_it.page, None),
        page("/try", try_it.ask, None, "POST"),
        page("/try/feedback", try_it.tell, None, "POST"),
        page("/sign-in", sign_in.form, None),
        page("/sign-in", sign_in.enter, None, "POST"),
        page("/sign-in/oidc", sign_in.to_issuer, None),
        page(OIDC_PATH, sign_in.from_issuer, None),
        page("/sign-out", sign_in.leave, Right.TRY, "POST"),
    ]


def _refuse(project: Project, signing: SignIn) -> Callable[[Request, Exception], Response]:
    """Return the function that answers an error with a page."""

    def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            status, sentence = error.status_code, str(error.detail)
        else:
            status, sentence = refusal(error)
        person, session = signing.person_of(request.cookies.get(COOKIE, ""))
        visit = Visit(request, project, signing, person=person, session=session)
        if request.url.path.startswith("/try") and person is None and status == 403:
            return render("redirect.html", 303, {"location": "/sign-in?next=/try"})
        values = {"status": status, "sentence": sentence, "back": _back(request)}
        return visit.page("refused.html", section="", title=TITLES.get(status, "Something went wrong"), **values)

    return refuse


def _back(request: Request) -> str:
    """Return the page that a form was sent from; "/" for anything else."""
    path = request.url.path.rpartition("/")[0]
    return path if request.method == "POST" and path else "/"
