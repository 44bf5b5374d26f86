"""What ends a call without an answer: a refusal, or a service that cannot answer now."""

from collections.abc import Sequence


class RatchetError(Exception):
    """A call to Ratchet that got no answer."""


class RequestRefused(RatchetError):
    """The service refused the request; repeating it changes nothing.

    Attributes:
        status: the HTTP status, 4xx or 5xx.
        error: what is wrong, in one line.
        detail: pairs of an invalid field's path and the rule it breaks.

    """

    def __init__(self, status: int, error: str, detail: Sequence[tuple[str, str]] = ()) -> None:
        fields = "".join(f"; {field}: {rule}" for field, rule in detail)
        super().__init__(f"{status}: {error}{fields}")
        self.status, self.error, self.detail = status, error, tuple(detail)


class NotAuthorised(RequestRefused):
    """The API key or the feedback token is missing, wrong or expired (401), or does not permit this (403)."""


class Unavailable(RatchetError):
    """The service was overloaded or unreachable until the attempts or the time were used up."""
