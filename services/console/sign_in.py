"""Sign-in: a key becomes a session, and a session's cookie becomes a person.

Turns a key into a cookie, at most a few wrong keys a minute for each address. Every request looks its person up again, so a
revoked key ends its sessions. OpenID Connect (oidc.py) ends in the same cookie.
"""

from typing import TYPE_CHECKING

from services.console.people import APP, OPERATOR, Person, fingerprint, is_key
from services.console.sessions import Session, Sessions
from services.console.throttle import Throttle
from serving.http.access import Keys

if TYPE_CHECKING:
    from serving.registry.registry import Registry

BURST, PER_MINUTE, ALL_PER_MINUTE = 5, 5, 60
MAX_KEY_CHARS = 512


class TooManyTries(PermissionError):
    """Wrong keys, or requests of /try, came too fast from one address; the message says when to try again."""

    def __init__(self, wait_s: int, what: str = "too many wrong keys") -> None:
        super().__init__(f"{what} from this address: try again in {wait_s} s")
        self.wait_s = wait_s


class SignIn:
    """Who may come in, by key or by session."""

    def __init__(
        self,
        keys: Keys,
        operator_key: str,
        registry: "Registry",
        sessions: Sessions,
        throttle: Throttle | None = None,
    ) -> None:
        operator, app = Person(OPERATOR, ("admin",), is_operator=True), Person(APP, ("predict", "feedback"))
        self._of_keys_file = [
            (f"{kind}:{fingerprint(keys.secret, key)}", key, person)
            for kind, key, person in (("operator", operator_key, operator), ("app", keys.api_key, app))
            if key
        ]
        self._registry = registry
        self.sessions = sessions
        self._throttle = throttle or Throttle(BURST, PER_MINUTE, ALL_PER_MINUTE)

    def person_with(self, key: str) -> tuple[Person, str] | None:
        """Return who holds a key and the subject of their sessions; None if nobody does. Raises RegistryUnavailable."""
        if not key or len(key) > MAX_KEY_CHARS:
            return None
        for subject, known, person in self._of_keys_file:
            if is_key(known, key):
                return person, subject
        named = self._registry.people.verify(key)
        return (Person(named.name, tuple(named.roles)), f"key:{named.key_id}") if named else None

    def open_session(self, key: str, address: str) -> tuple[Person, str] | None:
        """Return who holds a key and the cookie of their new session; None for a wrong key. Raises TooManyTries."""
        if wait_s := self._throttle.wait_s(address):
            raise TooManyTries(wait_s)
        known = self.person_with(key)
        if known is None:
            return None
        self._throttle.forgive(address)
        person, subject = known
        return person, self.sessions.issue(subject)

    def open_for(self, name: str) -> tuple[Person, str] | None:
        """Return the person of a name that an issuer vouches for, and the cookie of their session; None if unknown."""
        person = self._person(f"name:{name}")
        return (person, self.sessions.issue(f"name:{name}")) if person else None

    def count_wrong(self, address: str) -> int:
        """Count a wrong key of the API; return the seconds to wait if there were too many, else 0."""
        return self._throttle.wait_s(address)

    def person_of(self, cookie: str) -> tuple[Person | None, Session | None]:
        """Return the person and session of a cookie; None twice if the cookie or the key behind it is no longer valid."""
        session = self.sessions.read(cookie) if cookie else None
        person = self._person(session.subject) if session else None
        return (person, session) if person else (None, None)

    def csrf(self, session: Session | None) -> str:
        """Return the token for the forms of a session; empty without one."""
        return self.sessions.csrf(session) if session else ""

    def _person(self, subject: str) -> Person | None:
        kind, _, name = subject.partition(":")
        for known_subject, _, person in self._of_keys_file:
            if subject == known_subject:
                return person
        if kind in ("key", "name"):
            people = self._registry.people.list()
            named = next((one for one in people if name == (one.key_id if kind == "key" else one.name)), None)
            return Person(named.name, tuple(named.roles)) if named else None
        return None
