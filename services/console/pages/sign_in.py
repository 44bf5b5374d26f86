"""Sign-in and sign-out: a key becomes a cookie, and a cookie ends.

Turns the form's key into a session. Wrong keys are told apart from too many of them; nothing else is said.
"""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.console import oidc
from services.console.people import Forbidden, Right
from services.console.sessions import COOKIE
from services.console.sign_in import TooManyTries
from services.console.visit import Visit


def form(visit: Visit) -> Response:
    """Show the form."""
    if visit.person is not None:
        return RedirectResponse(_inside(visit.query("next")), 303)
    return _form(visit, visit.query("next"))


def enter(visit: Visit) -> Response:
    """Check the key and open a session."""
    target = _inside(visit.form.get("next", ""))
    try:
        known = visit.sign_in.open_session(visit.form.get("key", "").strip(), address(visit.request))
    except TooManyTries as error:
        answer = _form(visit, target, f"{error}.", 429)
        answer.headers["retry-after"] = str(error.wait_s)
        return answer
    if known is None:
        return _form(visit, target, "This key opens nothing. It may be mistyped, revoked or renewed.", 403)
    person, cookie = known
    home = target if person.may(Right.VIEW) else "/try"
    return with_cookie(RedirectResponse(home, 303), visit, cookie)


def to_issuer(visit: Visit) -> Response:
    """Send the browser to the issuer."""
    url, cookie = _oidc(visit).begin()
    answer = RedirectResponse(url, 303)
    secure = visit.project.settings.console.is_secure
    answer.set_cookie(
        oidc.COOKIE, cookie, max_age=oidc.WAY_S, path="/sign-in", httponly=True, samesite="lax", secure=secure
    )
    return answer


def from_issuer(visit: Visit) -> Response:
    """Open the session of whoever the issuer vouches for."""
    cookie = visit.request.cookies.get(oidc.COOKIE, "")
    email = _oidc(visit).finish(cookie, visit.query("code", limit=4000), visit.query("state"))
    known = visit.sign_in.open_for(email)
    if known is None:
        raise Forbidden(f"{email} is not known here: an admin adds you with `ratchet access add {email}`")
    person, session = known
    answer = with_cookie(RedirectResponse("/" if person.may(Right.VIEW) else "/try", 303), visit, session)
    answer.delete_cookie(oidc.COOKIE, path="/sign-in")
    return answer


def _oidc(visit: Visit) -> "oidc.Oidc":
    if visit.oidc is None:
        raise KeyError("there is no issuer: set console.oidc_issuer")
    return visit.oidc


def leave(visit: Visit) -> Response:
    """End the session in this browser."""
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(
        COOKIE, path="/", httponly=True, samesite="lax", secure=visit.project.settings.console.is_secure
    )
    return answer


def with_cookie(answer: Response, visit: Visit, cookie: str) -> Response:
    """Return a response that gives a session's cookie to the browser."""
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=visit.sign_in.sessions.seconds,
        path="/",
        httponly=True,
        samesite="lax",
        secure=visit.project.settings.console.is_secure,
    )
    return answer


def address(request: Request) -> str:
    """Return the caller's address; behind a proxy, uvicorn takes it from the header that the proxy writes."""
    return request.client.host if request.client else "unknown"


def _form(visit: Visit, target: str, wrong: str = "", status: int = 200) -> Response:
    issuer = visit.project.settings.console.oidc_issuer
    return visit.page(
        "sign_in.html", section="", title="Sign in", status=status, next=_inside(target), wrong=wrong, oidc=issuer
    )


def _inside(target: str) -> str:
    """Return a path of the console: another site's address, or one that a browser may read as such, becomes "/"."""
    safe = target.startswith("/") and not target.startswith("//") and "\\" not in target and target.isprintable()
    return target if safe else "/"
