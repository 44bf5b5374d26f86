"""Sessions: a signed cookie that names a person, and the CSRF token that belongs to it.

Turns a person who has signed in into a cookie, and a cookie into that person, as long as the key behind it is valid. Nothing is
stored: the cookie holds who, since when and a nonce, under an HMAC with the project's secret (RFC 2104). A key that was
revoked or renewed ends its sessions at the next request, because every request looks the person up again.
"""

import base64
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from serving.http.access import keyed_hash

COOKIE = "ratchet_session"


@dataclass(frozen=True)
class Session:
    """The content of a session cookie: `subject` is looked up again at every request."""

    subject: str
    since: int
    nonce: str


class Sessions:
    """Issue and read session cookies of one project.

    Args:
        secret: the project's secret.
        hours: lifetime of a session.
        clock: Unix seconds.

    """

    def __init__(self, secret: str, hours: float, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock
        self.seconds = int(hours * 3600)

    def issue(self, subject: str) -> str:
        """Return the cookie of a new session."""
        session = Session(subject, int(self._clock()), secrets.token_urlsafe(16))
        payload = base64.urlsafe_b64encode(json.dumps(asdict(session)).encode()).decode()
        return f"{payload}.{self._sign('console session', payload)}"

    def read(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if it is forged, damaged or too old."""
        payload, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("console session", payload).encode()):
            return None
        session = Session(**json.loads(base64.urlsafe_b64decode(payload)))
        return session if 0 <= self._clock() - session.since + 60 <= self.seconds + 60 else None

    def csrf(self, session: Session) -> str:
        """Return the token that a form of this session must carry."""
        return self._sign("console csrf", session.nonce)

    def is_csrf(self, session: Session, token: str) -> bool:
        """Return whether a token is the session's, in constant time."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.csrf(session).encode())

    def _sign(self, purpose: str, value: str) -> str:
        return keyed_hash(self._secret, purpose, value).hex()
