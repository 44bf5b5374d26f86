"""The guard: who may call a route, how often, and whether a prediction is one that this project made.

Turns a request's headers into a `Person`, or a refusal with 401, 403, 404 or 429. api.py asks it before and after it reads a
body. It knows no model and no registry.
"""

import asyncio
import contextlib
import logging
import time

from schemas.records import Person, Role
from schemas.settings import Settings
from serving.http import access
from serving.http.asgi import Refused, Request
from serving.http.counters import Counters
from serving.http.keyring import Keyring
from serving.http.prediction_ids import is_ours

log = logging.getLogger("ratchet.keys")

LOOKUP_EVERY_S, LOOKUP_S = 0.25, 1.0
ANYBODY = Person(name="anybody", roles=(Role.ADMIN,), key_id="")  # while access.enabled is false


class Guard:
    """Checks the callers of one worker.

    Args:
        settings: of the project.
        secret: of the project, for feedback tokens and prediction ids.
        keyring: the keys.
        counters: of requests, texts and token uses.
        lookup_s: seconds that a request with a new key waits for the registry.

    """

    def __init__(
        self, settings: Settings, secret: str, keyring: Keyring, counters: Counters, *, lookup_s: float = LOOKUP_S
    ) -> None:
        self._lookup_s = lookup_s
        self._access = settings.access
        self._secret = secret
        self._keyring = keyring
        self._counters = counters
        self._lookup: asyncio.Task[bool] | None = None
        self._lookup_at = 0.0
        self._reading = asyncio.Lock()

    async def admit(self, request: Request, *roles: Role) -> Person:
        """Return the caller, who has one of the roles; without roles, any valid key will do. Counts one request.

        Raises:
            Refused: 401 without a valid key, 403 without one of the roles, 429 past the caller's rate, 503 if the key is new and
                the registry does not say in time whose it is.

        """
        if not self._access.enabled:
            return ANYBODY
        person = await self._identify(request.headers.get(b"authorization", b""))
        if person is None:
            raise Refused(
                401,
                "the API key is missing or wrong",
                ("Authorization", "expected Bearer and a valid key: RATCHET_API_KEY of keys.env, or a named key"),
            )
        if roles and not any(person.may(role) for role in roles):
            needed, has = " or ".join(roles), ", ".join(person.roles)
            raise Refused(
                403,
                "the key may not do this",
                ("Authorization", f"this needs the role {needed}, and {person.name} has {has}"),
            )
        await self._count(person, "requests", person.rate or self._access.rate, 1)
        return person

    async def count_texts(self, person: Person, texts: int) -> None:
        """Count texts to predict. Raises Refused with 429 past the caller's quota."""
        if self._access.enabled:
            await self._count(person, "texts", person.quota or self._access.quota, texts)

    def check_token_alone(self, token: str) -> None:
        """Refuse a malformed or expired feedback token, before the body is read."""
        try:
            access.check_token_alone(token)
        except access.TokenRefused as error:
            raise _token_refused(error) from error

    async def check_token(self, prediction_id: str, token: str) -> None:
        """Refuse a feedback token of another prediction, and one that was used too often."""
        try:
            access.check_token(self._secret, prediction_id, token)
        except access.TokenRefused as error:
            raise _token_refused(error) from error
        limit = self._access.token_uses
        if await self._counters.token_uses(token, access.check_token_alone(token)) > limit:
            raise Refused(
                429, "this feedback token has been used too often", ("X-Feedback-Token", f"at most {limit} uses")
            )

    def check_known(self, prediction_id: str) -> None:
        """Refuse the id of a prediction that this project did not make, unless the settings accept such ids."""
        if self._access.unknown_predictions == "accept":
            return
        if not is_ours(self._secret, prediction_id, self._keyring.signed_since):
            raise Refused(
                404,
                "unknown prediction",
                (
                    "prediction_id",
                    "POST /predict of this project gave no such id: send one of its answers; "
                    'access.unknown_predictions = "accept" admits predictions of other producers',
                ),
            )

    def close(self) -> None:
        """Close keyring and counters."""
        self._keyring.close()
        self._counters.close()

    async def _identify(self, authorization: bytes) -> Person | None:
        """Return who calls. A key that is new is looked up at once: whoever was just given one may use it."""
        person = self._keyring.identify(authorization)
        if person is None and self._keyring.may_be_new(authorization):
            if self._lookup is None:
                self._lookup = asyncio.create_task(self._look_up())
            was_read = False
            with contextlib.suppress(TimeoutError):
                was_read = await asyncio.wait_for(asyncio.shield(self._lookup), self._lookup_s)
            person = self._keyring.identify(authorization)
            if person is None and not was_read:  # 401 would tell somebody with a valid key to give up
                raise Refused(
                    503,
                    "the keys cannot be read now",
                    ("Authorization", "this key is new here, and the registry does not answer: try again"),
                    Retry_After="2",
                )
        return person

    async def _look_up(self) -> bool:
        """Read the registry's keys; return whether they were read.

        All requests that wait share one read, so forged keys cause at most four a second.
        """
        await asyncio.sleep(self._lookup_at - time.monotonic())
        async with self._reading:  # a registry that hangs holds one thread, not all
            self._lookup, self._lookup_at = None, time.monotonic() + LOOKUP_EVERY_S  # later requests need a later read
            try:
                return await asyncio.to_thread(self._keyring.refresh)
            except Exception:
                log.exception("reading the keys failed, the earlier ones stay")
                return False

    async def _count(self, person: Person, kind: str, limit: str | None, amount: int) -> None:
        if limit is None:
            return
        wait_s = await self._counters.wait_s(kind, person.name, limit, amount)
        if wait_s is not None:
            raise Refused(
                429, f"too many {kind}", ("Authorization", f"{person.name} has {limit}"), Retry_After=str(wait_s)
            )


def _token_refused(error: access.TokenRefused) -> Refused:
    status = 401 if "expired" in str(error) else 403
    return Refused(status, str(error), ("X-Feedback-Token", str(error)))
