"""OpenID Connect: sign in through a team's issuer instead of a key.

Turns the issuer's identity token into a person of the registry, by the authorization code flow with PKCE (OpenID Connect Core
1.0; RFC 7636). State, nonce and verifier survive the way to the issuer and back in a signed cookie of ten minutes. Authlib builds
the request; joserfc checks the token. The issuer says who somebody is, the registry what they may do.
"""

import base64
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from schemas.settings import Settings
from serving.http.access import keyed_hash
from serving.keys_file import secret as stored_secret

COOKIE = "ratchet_oidc"
SECRET = "RATCHET_OIDC_SECRET"
WAY_S = 600
METADATA_S, AGAIN_S = 3600.0, 10.0
TIMEOUT_S = 10.0
SKEW_S = 60
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]  # no shared secrets, no "none"


class OidcRefused(PermissionError):
    """The issuer or its token cannot be trusted, or the person is not known; the message says which."""


class Oidc:
    """Takes people to one issuer and back.

    Args:
        settings: the project's; `console.oidc_issuer` is set.
        secret: the project's secret, which signs the cookie.
        redirect: address to which the issuer sends people back.
        transport: the network; None: the real one.
        clock: Unix seconds.

    """

    def __init__(
        self,
        settings: Settings,
        secret: str,
        redirect: str,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        console = settings.console
        assert console.oidc_issuer is not None
        assert console.oidc_client_id is not None
        self._issuer, self._client_id = console.oidc_issuer, console.oidc_client_id
        self._client_secret = stored_secret(SECRET, settings.path(settings.access.keys), os.environ)
        self._secret, self._redirect = secret, redirect
        self._transport, self._clock = transport, clock
        self._lock = threading.Lock()
        self._metadata: tuple[float, dict[str, Any], KeySet] | None = None
        self._again_at = 0.0  # an issuer that does not answer is not asked again before

    def begin(self) -> tuple[str, str]:
        """Return the issuer's address to go to, and the cookie that has to come back. Raises OidcRefused."""
        metadata, _ = self._known()
        verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
        state = secrets.token_urlsafe(24)
        url = prepare_grant_uri(
            metadata["authorization_endpoint"],
            client_id=self._client_id,
            response_type="code",
            redirect_uri=self._redirect,
            scope="openid email",
            state=state,
            nonce=nonce,
            code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
        )
        way = {"state": state, "nonce": nonce, "verifier": verifier, "until": int(self._clock()) + WAY_S}
        payload = base64.urlsafe_b64encode(json.dumps(way).encode()).decode()
        return url, f"{payload}.{self._sign(payload)}"

    def finish(self, cookie: str, code: str, state: str) -> str:
        """Return the verified e-mail address of whoever came back. Raises OidcRefused."""
        payload, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(payload).encode()):
            raise OidcRefused("this sign-in was not begun here: try again")
        way = json.loads(base64.urlsafe_b64decode(payload))
        if not hmac.compare_digest(way["state"].encode(), state.encode()) or self._clock() > way["until"]:
            raise OidcRefused("this sign-in has expired: try again")
        metadata, _ = self._known()
        try:
            token = self._fetch_token(metadata["token_endpoint"], code, way["verifier"])
            claims = self._claims(token)
            self._check(claims, way["nonce"])
        except (JoseError, KeyError, ValueError, httpx.HTTPError) as error:
            raise OidcRefused(f"the issuer's token is refused: {type(error).__name__}") from error
        if claims.get("email_verified") is not True or not claims.get("email"):
            raise OidcRefused("the issuer has not verified your e-mail address")
        return str(claims["email"])

    def _claims(self, token: str) -> dict[str, Any]:
        """Return a token's claims; keys that the issuer has renewed since are read again once. Raises JoseError or ValueError."""
        _, keys = self._known()
        try:
            return jwt.decode(token, keys, algorithms=ALGORITHMS).claims
        except (JoseError, ValueError):
            with self._lock:
                if self._metadata is not None and self._metadata[2] is keys:
                    self._metadata = None
            _, renewed = self._known()
            return jwt.decode(token, renewed, algorithms=ALGORITHMS).claims

    def _check(self, claims: dict[str, Any], nonce: str) -> None:
        registry = jwt.JWTClaimsRegistry(
            now=int(self._clock()),
            leeway=SKEW_S,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._client_id},
            exp={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        registry.validate(claims)

    def _known(self) -> tuple[dict[str, Any], KeySet]:
        """Return the issuer's metadata and keys, read once an hour. Raises OidcRefused."""
        with self._lock:
            if self._metadata is None or self._clock() - self._metadata[0] > METADATA_S:
                if self._clock() < self._again_at:
                    raise OidcRefused(f"{self._issuer} did not answer: try again in {AGAIN_S:.0f} s")
                self._again_at = self._clock() + AGAIN_S
                self._metadata = (self._clock(), *self._read())
                self._again_at = 0.0
            return self._metadata[1:]

    def _read(self) -> tuple[dict[str, Any], KeySet]:
        try:
            with httpx.Client(transport=self._transport, timeout=TIMEOUT_S) as client:
                metadata = client.get(f"{self._issuer}/.well-known/openid-configuration").raise_for_status().json()
                if metadata.get("issuer") != self._issuer:
                    raise OidcRefused(
                        f"{self._issuer} says that it is {metadata.get('issuer')}: set console.oidc_issuer to that"
                    )
                keys = client.get(metadata["jwks_uri"]).raise_for_status().json()
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise OidcRefused(f"{self._issuer} cannot be used: {type(error).__name__}") from error
        return metadata, KeySet.import_key_set(keys)

    def _fetch_token(self, address: str, code: str, verifier: str) -> str:
        """Return the identity token for a code. Raises httpx.HTTPError, KeyError or ValueError."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": self._redirect}
        form |= {"code_verifier": verifier, "client_id": self._client_id}
        auth = httpx.BasicAuth(self._client_id, self._client_secret) if self._client_secret else None
        with httpx.Client(transport=self._transport, timeout=TIMEOUT_S, auth=auth) as client:
            answer = client.post(address, data=form, headers={"accept": "application/json"})
        return str(answer.raise_for_status().json()["id_token"])

    def _sign(self, payload: str) -> str:
        return keyed_hash(self._secret, "console oidc", payload).hex()
