"""A visit: one request with the project, the person who asks and the submitted form, and the way to turn it into a response.

Turns a Starlette request into a `Visit`, checks sign-in, right and CSRF token, and runs the page in a thread, because pages
read databases. app.py wraps every page with `answering`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.console.comparison import Comparisons
from services.console.oidc import Oidc
from services.console.people import Forbidden, Person, Right, require
from services.console.project import Project
from services.console.rendering import render
from services.console.sessions import COOKIE, Session
from services.console.sign_in import SignIn

Form = Mapping[str, str]


class CsrfRefused(PermissionError):
    """The form lacks this session's token: it is stale, or another site sent it."""


@dataclass
class Visit:
    """One request of one person. `person` is None on pages that need no sign-in."""

    request: Request
    project: Project
    sign_in: SignIn
    comparisons: Comparisons | None = None
    oidc: Oidc | None = None
    person: Person | None = None
    session: Session | None = None
    form: Form = field(default_factory=dict)
    listed: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def who(self) -> Person:
        """Return the person who has signed in."""
        if self.person is None:
            raise Forbidden("sign in first")
        return self.person

    def query(self, name: str, default: str = "", *, limit: int = 500) -> str:
        """Return a query parameter, at most `limit` characters of it."""
        return self.request.query_params.get(name, default)[:limit]

    def part(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])

    @property
    def is_partial(self) -> bool:
        """Return whether htmx asks for the page's changing part alone."""
        return self.request.headers.get("hx-request") == "true"

    def page(self, template: str, *, section: str, title: str, **values: Any) -> Response:
        """Return a page in the console's frame; `status` among the values is its status."""
        settings, csrf = self.project.settings, self.sign_in.csrf(self.session)
        shared: dict[str, Any] = {
            "model": settings.model.name,
            "person": self.person,
            "csrf": csrf,
            "section": section,
            "title": title,
            "may": lambda right: self.person is not None and self.person.may(Right(right)),
            "try_page": settings.console.try_page != "off",
            "notice": self.query("done"),
        }
        return render(template, values.get("status", 200), **shared, **{"status": 200, **values})

    def redirect(self, path: str, done: str = "") -> Response:
        """Return the answer to a form: another page, with a sentence that says what was done."""
        joint = "&" if "?" in path else "?"
        target = f"{path}{joint}done={quote(done)}" if done else path
        if self.is_partial:
            return Response(status_code=204, headers={"HX-Redirect": target})
        return RedirectResponse(target, 303)


Page = Callable[[Visit], Response]


def answering(
    page: Page,
    right: Right | None,
    project: Project,
    sign_in: SignIn,
    comparisons: Comparisons,
    oidc: Oidc | None,
) -> Callable[[Request], Any]:
    """Return a Starlette endpoint: it checks who asks, then calls the page in a thread. No right: anybody may come."""

    async def endpoint(request: Request) -> Response:
        form, listed = await _form(request) if request.method == "POST" else ({}, {})
        return await run_in_threadpool(_answer, request, form, listed)

    def _answer(request: Request, form: Form, listed: Mapping[str, list[str]]) -> Response:
        person, session = sign_in.person_of(request.cookies.get(COOKIE, ""))
        visit = Visit(request, project, sign_in, comparisons, oidc, person, session, form, listed)
        if right is None:
            return page(visit)
        if person is None:
            return _to_sign_in(visit)
        require(person, right)
        if request.method == "POST":
            check_csrf(sign_in, session, form.get("csrf", "") or request.headers.get("x-csrf-token", ""))
        return page(visit)

    return endpoint


def check_csrf(sign_in: SignIn, session: Session | None, token: str) -> None:
    """Raise CsrfRefused unless the token is the session's."""
    if session is None or not sign_in.sessions.is_csrf(session, token):
        raise CsrfRefused("the form is stale: reload the page and try again")


def _to_sign_in(visit: Visit) -> Response:
    target = f"/sign-in?next={quote(visit.request.url.path)}"
    if visit.is_partial:
        return Response(status_code=204, headers={"HX-Redirect": target})
    return RedirectResponse(target, 303)


async def _form(request: Request) -> tuple[Form, Mapping[str, list[str]]]:
    """Return a form's first value by name, and all its values by name. Files are not accepted."""
    form = await request.form(max_files=0, max_fields=2000)
    pairs = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    listed: dict[str, list[str]] = {}
    for name, value in pairs:
        listed.setdefault(name, []).append(value)
    return {name: values[0] for name, values in listed.items()}, listed
