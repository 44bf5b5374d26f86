"""Requests and responses as values, without I/O: what client.py and async_client.py have in common.

Turns a method's arguments into a `Call`, and a response into its JSON, a `Trouble` worth another attempt, or an error.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx

from ratchet_client.errors import NotAuthorised, RequestRefused, Unavailable
from ratchet_client.predictions import Feedback, Item, Prediction
from ratchet_client.retries import Trouble

DEFAULT_URL = "http://127.0.0.1:3000"
Kind = Literal["correction", "rating", "score", "comment", "retract"]
Value = str | float | Sequence[str]
BUSY = frozenset((429, 503))
GATEWAY = frozenset((502, 504))  # a proxy's: the request may have been handled


@dataclass(frozen=True)
class Call:
    """One request. `idempotent`: a repetition has no further effect, even if the first was handled."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = True

    @property
    def name(self) -> str:
        """Return method and path, for messages."""
        return f"{self.method} /{self.path}"


@dataclass(frozen=True)
class Target:
    """The service's address, and the key if there is one."""

    url: str
    api_key: str | None

    @classmethod
    def of(cls, url: str | None, api_key: str | None) -> "Target":
        """Return the target; what is None comes from RATCHET_URL and RATCHET_API_KEY in the environment."""
        return cls(url or os.environ.get("RATCHET_URL") or DEFAULT_URL, api_key or os.environ.get("RATCHET_API_KEY"))

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of every request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def feedback(
        self, on: Prediction | Feedback | str, kind: Kind, value: Value, user: str | None, feedback_id: str | None
    ) -> tuple[Call, Feedback]:
        """Return the call of POST /feedback, and the receipt of its acceptance."""
        prediction_id = on if isinstance(on, str) else on.prediction_id
        token = None if isinstance(on, str) else on.feedback_token
        receipt = Feedback(feedback_id or new_id(), prediction_id, user, token)
        body: dict[str, Any] = {
            "prediction_id": prediction_id,
            "kind": kind,
            "value": value if isinstance(value, str | int | float) else list(value),
            "feedback_id": receipt.feedback_id,
        }
        if user is not None:
            body["user"] = user
        return Call("POST", "feedback", body, {} if self.api_key or not token else {"X-Feedback-Token": token}), receipt


def predict_call(items: Sequence[Item], user: str | None, coverage: float | None, max_new_tokens: int | None) -> Call:
    """Return the call of POST /predict."""
    body: dict[str, Any] = {
        "items": [{"text": i.text, "metadata": dict(i.metadata)} if i.metadata else {"text": i.text} for i in items]
    }
    options = {"coverage": coverage, "max_new_tokens": max_new_tokens}
    if given := {name: value for name, value in options.items() if value is not None}:
        body["options"] = given
    if user is not None:
        body["user"] = user
    return Call("POST", "predict", body, idempotent=False)


def predictions(answer: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """Return the predictions of POST /predict's answer."""
    return [Prediction(one["prediction_id"], one["model_version"], one["feedback_token"], one) for one in answer]


def parts(items: Iterable[str | Item], batch: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `batch`. Raises ValueError if `batch` is below 1."""
    if batch < 1:
        raise ValueError(f"`batch` must be at least 1, got {batch}")
    part: list[Item] = []
    for item in items:
        part.append(Item(item) if isinstance(item, str) else item)
        if len(part) == batch:
            yield part
            part = []
    if part:
        yield part


def failed(call: Call, error: httpx.TransportError) -> Trouble:
    """Return why the call failed without a response. Raises Unavailable if it may still be in work, so must not repeat.

    A connection that broke is repeated for every call: most often the server had closed it between two requests, and a
    prediction that was made twice is one event more.
    """
    reason = f"{call.name}: {type(error).__name__}: {error}"
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        reason = f"{call.name}: no answer in time ({type(error).__name__})"
        if not call.idempotent:
            raise Unavailable(f"{reason}; it may have been handled, so it is not repeated") from error
    if isinstance(error, httpx.UnsupportedProtocol):
        raise Unavailable(reason) from error
    return Trouble(reason)


def answer_of(call: Call, response: httpx.Response) -> Any:
    """Return the response's JSON, or a Trouble worth another attempt. Raises RequestRefused or NotAuthorised."""
    status = response.status_code
    if response.is_success:
        try:
            return response.json()
        except ValueError:
            raise RequestRefused(status, f"{response.url} answered no JSON: check the client's `url`") from None
    error, detail = _refusal(response)
    used_up = any(name == "X-Feedback-Token" for name, _ in detail)  # a token's uses, which never come back
    if (status in BUSY and not used_up) or (status in GATEWAY and call.idempotent):
        return Trouble(f"{call.name}: {status}: {error}", _retry_after(response.headers.get("Retry-After")))
    raise (NotAuthorised if status in (401, 403) else RequestRefused)(status, error, detail)


def _refusal(response: httpx.Response) -> tuple[str, list[tuple[str, str]]]:
    """Return error and detail of a refusal; a proxy's refusal may not be Ratchet's JSON."""
    try:
        body = response.json()
        return str(body["error"]), [(str(one["field"]), str(one["message"])) for one in body["detail"]]
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase or "no reason given", []


def _retry_after(header: str | None) -> float:
    """Return the seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); 0 if there is none."""
    if not header:
        return 0.0
    if header.strip().isdigit():
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (at - datetime.now(at.tzinfo or timezone.utc)).total_seconds()) if at.tzinfo else 0.0


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562, 5.7): ids sort by time."""
    stamp = time.time_ns() // 1_000_000
    return str(uuid.UUID(int=stamp << 80 | 0x7 << 76 | uuid.uuid4().int & (1 << 76) - 1))
