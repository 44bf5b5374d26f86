"""The settings of the console: address, sign-in, the page for end users, notifications."""

import ipaddress
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from schemas.setting_groups import Group

EVENTS = (
    "awaiting approval", "settling", "promoted", "rejected", "insufficient evidence", "failed", "rolled back", "drift",
)  # fmt: skip


class ConsoleSettings(Group):
    """The console: the pages where people watch rounds and decide."""

    enabled: bool = Field(True, description="`ratchet up` starts the console")
    host: str = Field("127.0.0.1", description="address of the console")
    port: int = Field(3001, ge=1, le=65535, description="port of the console")
    public_url: str | None = Field(
        None,
        description="address in a browser, such as https://ratchet.example, where a proxy ends TLS. Unset: http://host:port. "
        "A host beyond loopback needs an https address, because cookies are sent over TLS alone",
    )
    session_hours: float = Field(12.0, gt=0, le=720, description="hours after which a person signs in again")
    try_page: Literal["people", "open", "off"] = Field(
        "people",
        description="who may use /try, where end users ask and correct: people who have signed in; open, anybody who "
        "reaches the console, 30 requests a minute for each address; off, nobody",
    )
    webhooks: tuple[str, ...] = Field(
        (),
        description="addresses that receive a signed POST for each event. In the environment: separated by commas",
    )
    webhook_events: tuple[str, ...] = Field(
        EVENTS, description=f"events that are sent: {', '.join(EVENTS)}. In the environment: separated by commas"
    )
    drift: float | None = Field(
        0.25,
        gt=0,
        description="population stability index beyond which the live version's newest answers, or their confidence, have "
        "drifted from its first ones: an alarm, and the webhook `drift` once a day while it lasts. Unset: off",
    )
    drift_window: int = Field(
        1000, ge=200, le=20_000, description="predictions of the live version that are compared, first and newest"
    )
    oidc_issuer: str | None = Field(
        None, description="OpenID Connect issuer, such as https://login.example. Unset: people sign in with keys alone"
    )
    oidc_client_id: str | None = Field(
        None, description="client id at the issuer; its secret is RATCHET_OIDC_SECRET in keys.env or the environment"
    )

    @field_validator("webhooks", "webhook_events", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return () if value is None else value

    @field_validator("webhooks")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            _check_address(url)
        return value

    @field_validator("webhook_events")
    @classmethod
    def _are_events(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for event in value:
            if event not in EVENTS:
                raise ValueError(f"{event!r} is no event: choose from {', '.join(EVENTS)}")
        return value

    @field_validator("public_url", "oidc_issuer")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            _check_address(value)
        return value.rstrip("/") if value else value

    @model_validator(mode="after")
    def _cookies_need_tls(self) -> Self:
        if self.enabled and not self.is_secure and not is_loopback(self.host):
            raise ValueError(
                f"console.host = {self.host!r} is reachable from other machines, and cookies would travel in the clear: set "
                "console.public_url to the https:// address of a proxy that ends TLS, or console.host to 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _oidc_is_whole(self) -> Self:
        if (self.oidc_issuer is None) != (self.oidc_client_id is None):
            raise ValueError("console.oidc_issuer and console.oidc_client_id belong together: set both or none")
        return self

    @property
    def is_secure(self) -> bool:
        """Return whether browsers reach the console over TLS."""
        return (self.public_url or "").startswith("https://")


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    try:
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address:
        raise ValueError(f"{url!r}: expected an address such as https://example.org/path")
    if parts.username or parts.password:
        raise ValueError("an address must not hold a password: it would stand in ratchet.toml")
