"""/try, for end users: type a text, see the answer, correct it, and learn later which version your word has trained.

Turns a text into a request to the inference API, exactly as an app would send it, and a correction into feedback with the
prediction's token. A signed cookie names the visitor; the log holds their pseudonym alone.
"""

import re
import secrets
from typing import Any

import httpx
import orjson
from starlette.responses import Response

from pipelines.dataset.project_dataset import ROWS
from pipelines.feature_store.feedback_search import Wanted
from schemas.records import RoundState
from schemas.targets import LABELLED
from services.console import charts
from services.console.pages.sign_in import address
from services.console.people import Forbidden, Right
from services.console.sign_in import TooManyTries
from services.console.visit import Visit, check_csrf
from serving.http.access import keyed_hash, pseudonym, read_keys

VISITOR = "ratchet_visitor"
TIMEOUT_S = 15.0
ROUNDS = 30
NAMED = re.compile(r"([A-Za-z0-9_-]{22})\.([0-9a-f]{32})")


class ServingDown(ConnectionError):
    """The inference API does not answer, or refuses; the message says why."""


def page(visit: Visit) -> Response:
    """Show the box, and what became of the visitor's earlier feedback."""
    visitor = _visitor(visit)
    if _named(visit):  # what became of earlier feedback takes a look through the event log
        _slow_down(visit)
    return _shown(visit, visitor, answer=None, text="")


def ask(visit: Visit) -> Response:
    """Predict the text, and show the answer with its alternatives."""
    visitor, text = _visitor(visit), visit.form.get("text", "").strip()
    _check_csrf(visit)
    if not text:
        return _shown(visit, visitor, answer=None, text="")
    _slow_down(visit)
    body = {"items": [{"text": text, "metadata": {"channel": "try"}}], "user": visitor}
    settings = visit.project.settings  # the key may have been renewed since the console began
    headers = {"authorization": f"Bearer {read_keys(settings.path(settings.access.keys)).api_key}"}
    answered = _call(visit, "/predict", body, headers)
    return _shown(visit, visitor, answer=answered[0], text=text)


def tell(visit: Visit) -> Response:
    """Send a correction or a thumb, with the token of its prediction."""
    visitor, form = _visitor(visit), visit.form
    _check_csrf(visit)
    _slow_down(visit)
    kind = form.get("kind", "")
    value: Any = form.get("value", "").strip()
    if kind == "correction" and visit.project.settings.model.task == "multilabel":
        value = [label for label in visit.listed.get("value", []) if label]
    if kind == "correction" and visit.project.settings.model.task == "regression":
        try:
            value = float(value)
        except ValueError:
            raise ServingDown("value: expected a number") from None
    body = {"prediction_id": form.get("prediction_id", ""), "kind": kind, "value": value, "user": visitor}
    _call(visit, "/feedback", body, {"x-feedback-token": form.get("token", "")}, wanted=202)
    return visit.redirect("/try", "Thank you. What you said trains the next version, if others don't contradict it.")


def _shown(visit: Visit, visitor: str, *, answer: Any, text: str) -> Response:
    task, registry = visit.project.settings.model.task, visit.project.registry
    champion = registry.champion()
    response = visit.page(
        "try.html",
        section="try",
        title="Try it",
        answer=answer,
        text=text,
        task=task,
        likely=_likely(answer),
        labels=registry.active_labels() if task in LABELLED else [],
        champion=champion,
        fate=_fate(visit, visitor) if _named(visit) else [],
    )
    named = f"{visitor}.{_sign(visit, visitor)}"
    response.set_cookie(
        VISITOR, named, max_age=180 * 86_400, path="/try", httponly=True, samesite="lax",
        secure=visit.project.settings.console.is_secure,
    )  # fmt: skip
    return response


def _likely(answer: Any) -> list[tuple[str, float, Any]]:
    """Return label, probability and bar of the likeliest labels."""
    probabilities = (answer or {}).get("probabilities") or {}
    ordered = sorted(probabilities.items(), key=lambda pair: -pair[1])[:5]
    return [(label, p, charts.meter(p, f"{label}: {p:.0%}")) for label, p in ordered]


def _fate(visit: Visit, visitor: str) -> list[dict[str, Any]]:
    """Return the visitor's newest feedback, each with the first version that trained on it, None if none did yet."""
    user = pseudonym(visit.project.keys.secret, visitor)
    try:
        rows = [
            row for row in visit.project.events.feedback(Wanted(user=user, limit=8)).rows if row["kind"] != "retract"
        ]
    except (OSError, ValueError):
        return []
    if not rows:
        return []
    trained = _trained(visit, user, {row["text"] for row in rows if row["text"]})
    return [{**row, "version": trained.get(row["text"] or "")} for row in rows]


def _trained(visit: Visit, user: str, texts: set[str]) -> dict[str, str]:
    """Return text -> first promoted version whose training rows hold it from this person, for these texts."""
    promoted = visit.project.registry.history.rounds_page(states=[RoundState.PROMOTED.value], limit=ROUNDS)
    first: dict[str, str] = {}
    for _, record in promoted[::-1]:
        if texts <= first.keys():
            break
        path = visit.project.settings.path("state/rounds") / record.round_id / ROWS
        wanted = f'"{user}"'.encode()
        try:
            with path.open("rb") as file:
                for line in file:
                    if wanted in line:
                        row = orjson.loads(line)
                        if row["person"] == user and row["side"] in ("train", "rejection"):
                            first.setdefault(row["text"], record.candidate_version or "")
        except OSError:
            continue
    return first


def _call(visit: Visit, path: str, body: object, headers: dict[str, str], wanted: int = 200) -> Any:
    url = visit.project.serving_url() + path
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.post(url, json=body, headers=headers)
    except httpx.HTTPError as error:
        raise ServingDown(f"the model does not answer at {url}: is `ratchet up` running? ({error})") from error
    if answer.status_code != wanted:
        reason = (
            answer.json().get("error") if answer.headers.get("content-type", "").startswith("application/json") else ""
        )
        raise ServingDown(f"the model refused: {reason or answer.status_code}")
    return answer.json()


def _visitor(visit: Visit) -> str:
    """Return the visitor's id: of the signed cookie, else a new one. Refuses those who may not use the page."""
    setting = visit.project.settings.console.try_page
    if setting == "off":
        raise KeyError("this page is switched off: console.try_page")
    if setting == "people" and (visit.person is None or not visit.person.may(Right.TRY)):
        raise Forbidden("sign in first")
    return _named(visit) or secrets.token_urlsafe(16)


def _named(visit: Visit) -> str | None:
    """Return the id of the signed cookie, if there is one."""
    match = NAMED.fullmatch(visit.request.cookies.get(VISITOR, ""))
    return match[1] if match and secrets.compare_digest(match[2], _sign(visit, match[1])) else None


def _sign(visit: Visit, visitor: str) -> str:
    return keyed_hash(visit.project.keys.secret, "console visitor", visitor).hex()[:32]


def _check_csrf(visit: Visit) -> None:
    """Refuse a stale form of somebody who has signed in; without a session there is nothing to forge."""
    if visit.session is not None:
        check_csrf(visit.sign_in, visit.session, visit.form.get("csrf", ""))


def _slow_down(visit: Visit) -> None:
    if wait_s := visit.project.tries.wait_s(address(visit.request)):
        raise TooManyTries(wait_s, "too many requests")
