"""OpenID Connect against an issuer of our own: who gets in, and every token that does not count."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.testclient import TestClient

from schemas.configuration.console import ConsoleSettings
from schemas.settings import Settings
from services.console.app import OIDC_PATH, build
from services.console.oidc import AGAIN_S, COOKIE, Oidc, OidcRefused
from services.console.project import Project
from serving.http.access import read_keys
from serving.registry.registry import Registry

ISSUER, CLIENT, EMAIL = "https://login.example", "ratchet", "rita@example.org"


class Issuer(httpx.BaseTransport):
    """An issuer that signs what it is told to: `claims` overrides the token's, `key` signs it. It may be `away`."""

    def __init__(self) -> None:
        self.published = RSAKey.generate_key(2048, {"kid": "1"})
        self.key = self.published
        self.claims: dict[str, Any] = {}
        self.name = ISSUER
        self.nonce = ""
        self.challenge = ""
        self.requests: list[str] = []
        self.away = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request.url.path)
        if self.away:
            raise httpx.ConnectError("refused", request=request)
        if request.url.path == "/.well-known/openid-configuration":
            endpoints = {name: f"{ISSUER}/{name}" for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")}
            return httpx.Response(200, json={"issuer": self.name, **endpoints})
        if request.url.path == "/jwks_uri":
            return httpx.Response(200, json={"keys": [self.published.as_dict(private=False)]})
        form = parse_qs(request.read().decode())
        if form["code"] != ["good"] or not form.get("code_verifier"):
            return httpx.Response(400, json={"error": "invalid_grant"})
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": CLIENT, "sub": "1", "exp": now + 300, "iat": now, "nonce": self.nonce}
        claims |= {"email": EMAIL, "email_verified": True, **self.claims}
        token = jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        return httpx.Response(200, json={"access_token": "a", "token_type": "Bearer", "id_token": token})


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def signing(settings: Settings) -> Settings:
    """The project of people who sign in at the issuer."""
    console = ConsoleSettings(oidc_issuer=ISSUER, oidc_client_id=CLIENT)
    return settings.model_copy(update={"console": console})


@pytest.fixture
def client(signing: Settings, issuer: Issuer) -> Iterator[TestClient]:
    registry = Registry(signing.registry_url, signing.model.name)
    registry.migrate()
    registry.people.add(EMAIL, ["review"])
    project = Project(signing, Path("ratchet.toml"), registry, read_keys(signing.path("keys.env")))
    oidc = Oidc(signing, project.keys.secret, f"http://testserver{OIDC_PATH}", transport=issuer)
    with TestClient(build(project, issuer=oidc), follow_redirects=False) as made:
        yield made
    registry.close()


def returned(client: TestClient, issuer: Issuer, *, code: str = "good", state: str | None = None) -> Any:
    """Go to the issuer and come back."""
    away = client.get("/sign-in/oidc")
    assert away.status_code == 303, away.text
    query = parse_qs(urlsplit(away.headers["location"]).query)
    assert query["code_challenge_method"] == ["S256"]
    issuer.nonce = issuer.claims.get("nonce", query["nonce"][0])
    return client.get(f"{OIDC_PATH}?code={code}&state={state or query['state'][0]}")


def test_a_person_of_the_registry_comes_in(client: TestClient, issuer: Issuer) -> None:
    back = returned(client, issuer)
    assert back.status_code == 303, back.text
    assert back.headers["location"] == "/"
    assert EMAIL in client.get("/rounds").text
    assert "Sign in with" in TestClient(client.app).get("/sign-in").text


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "mallory@example.org"},
        {"email_verified": False},
        {"email_verified": "true"},
        {"iss": "https://evil.example"},
        {"aud": "another client"},
        {"exp": 1000},
        {"nonce": "of another sign-in"},
    ],
)
def test_a_token_that_does_not_count_is_refused(client: TestClient, issuer: Issuer, claims: dict[str, Any]) -> None:
    issuer.claims = claims
    assert returned(client, issuer).status_code == 403
    assert client.get("/rounds").status_code == 303


def test_a_token_that_somebody_else_signed_is_refused(client: TestClient, issuer: Issuer) -> None:
    issuer.key = RSAKey.generate_key(2048, {"kid": "1"})
    assert returned(client, issuer).status_code == 403
    assert issuer.requests.count("/jwks_uri") == 2, "the keys are read again once, in case they were renewed"


@pytest.mark.parametrize("kid", ["1", "2"])
def test_keys_that_the_issuer_renewed_are_read_again_within_the_hour(
    client: TestClient, issuer: Issuer, kid: str
) -> None:
    assert returned(client, issuer).status_code == 303
    issuer.published = issuer.key = RSAKey.generate_key(2048, {"kid": kid})
    assert returned(client, issuer).status_code == 303
    assert issuer.requests.count("/jwks_uri") == 2
    assert returned(client, issuer).status_code == 303
    assert issuer.requests.count("/jwks_uri") == 2, "the renewed keys are kept"


def test_an_issuer_that_does_not_answer_is_left_alone_for_some_seconds(signing: Settings, issuer: Issuer) -> None:
    now = [1_000_000.0]
    oidc = Oidc(signing, "s3cret", f"http://testserver{OIDC_PATH}", transport=issuer, clock=lambda: now[0])
    issuer.away = True
    with pytest.raises(OidcRefused, match="cannot be used: ConnectError"):
        oidc.begin()
    issuer.away = False
    now[0] += AGAIN_S - 1
    with pytest.raises(OidcRefused, match="did not answer: try again in 10 s"):
        oidc.begin()
    assert len(issuer.requests) == 1
    now[0] += 1
    address, _ = oidc.begin()
    assert address.startswith(ISSUER)


def test_a_forged_return_is_refused(client: TestClient, issuer: Issuer) -> None:
    assert returned(client, issuer, state="another").status_code == 403
    assert returned(client, issuer, code="bad").status_code == 403
    client.cookies.delete(COOKIE)
    assert client.get(f"{OIDC_PATH}?code=good&state=x").status_code == 403
    assert client.get(OIDC_PATH, headers={"cookie": f"{COOKIE}=e30=.{'0' * 64}"}).status_code == 403


def test_an_issuer_with_another_name_is_refused(client: TestClient, issuer: Issuer) -> None:
    issuer.name = "https://another.example"
    assert client.get("/sign-in/oidc").status_code == 403


def test_a_person_who_is_revoked_is_out(client: TestClient, issuer: Issuer, settings: Settings) -> None:
    returned(client, issuer)
    registry = Registry(settings.registry_url, settings.model.name)
    registry.people.revoke(EMAIL)
    registry.close()
    assert client.get("/rounds").status_code == 303
