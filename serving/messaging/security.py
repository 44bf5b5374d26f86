"""Security of connections to Kafka: protocol, SASL user and TLS files.

Turns the settings `kafka.*` and the secrets of keys.env or the environment into options of kafka-python's clients. No secret
is part of a message or of a `repr`.
"""

import contextlib
import functools
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka.net.sasl.oauth import AbstractTokenProvider

from schemas.settings import Settings
from serving.keys_file import secret

PASSWORD, KEY_PASSWORD, TOKEN = "RATCHET_KAFKA_PASSWORD", "RATCHET_KAFKA_KEY_PASSWORD", "RATCHET_KAFKA_TOKEN"
TOKEN_SECONDS = 3.0  # to wait for the address that gives tokens
EARLY_SECONDS = 30.0  # before it expires, a token is replaced


class BadSecurity(ValueError):
    """A secret is missing, or a file cannot be used; the message names the setting or the variable."""


@dataclass(frozen=True)
class Security:
    """How a client proves who it is, and whom it trusts."""

    protocol: str = "PLAINTEXT"
    mechanism: str | None = None
    username: str | None = None
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    token_url: str | None = None
    scope: str | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    key_password: str = field(default="", repr=False)
    check_hostname: bool = True

    @classmethod
    def of(cls, settings: Settings, environ: Mapping[str, str]) -> "Security":
        """Return the security of a project; a variable of the environment goes before keys.env. Raises BadSecurity."""
        kafka = settings.kafka
        if kafka.security_protocol == "PLAINTEXT":
            return cls()
        keys = settings.path(settings.access.keys)

        def file(value: str | None) -> Path | None:
            return settings.path(value) if value else None

        security = cls(
            protocol=kafka.security_protocol,
            mechanism=kafka.sasl_mechanism,
            username=kafka.sasl_username,
            password=secret(PASSWORD, keys, environ),
            token=secret(TOKEN, keys, environ),
            token_url=kafka.oauth_token_url,
            scope=kafka.oauth_scope,
            ca_file=file(kafka.ssl_ca_file),
            certificate_file=file(kafka.ssl_certificate_file),
            key_file=file(kafka.ssl_key_file),
            key_password=secret(KEY_PASSWORD, keys, environ),
            check_hostname=kafka.ssl_check_hostname,
        )
        if missing := security.missing_secret():
            who = f"user {security.username!r}" if missing == PASSWORD else "OAUTHBEARER"
            raise BadSecurity(f"{who} needs {missing}: write it into {keys}, or set it in the environment")
        return security

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """Whether a user logs in."""
        return self.protocol.startswith("SASL")

    def missing_secret(self) -> str | None:
        """Return the name of the secret that SASL needs and that is not set; None if nothing is missing."""
        if not self.sasl:
            return None
        if self.mechanism == "OAUTHBEARER" and not self.token_url:
            return None if self.token else TOKEN
        return None if self.password else PASSWORD

    def options(self) -> dict[str, Any]:
        """Return the options of kafka-python's clients. Raises BadSecurity if a file cannot be used."""
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.tls:
            options["ssl_context"] = self.context()
        if self.mechanism == "OAUTHBEARER":
            options |= {"sasl_mechanism": self.mechanism, "sasl_oauth_token_provider": _tokens_of(self)}
        elif self.sasl:
            name = self.username or ""
            if str(self.mechanism).startswith("SCRAM"):
                name = name.replace("=", "=3D").replace(",", "=2C")  # RFC 5802, section 5.1; kafka-python does not
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": name,
                "sasl_plain_password": self.password,
            }
        return options

    def forget_token(self) -> None:
        """Let the next connection fetch a new token: a broker has refused the last one."""
        if self.mechanism == "OAUTHBEARER":
            _tokens_of(self).forget()

    def context(self) -> ssl.SSLContext:
        """Return a TLS client context. Raises BadSecurity if a file is missing, unreadable or does not fit."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.check_hostname
        try:
            if self.ca_file:
                context.load_verify_locations(_readable("ssl_ca_file", self.ca_file))
            else:
                context.load_default_certs()
        except ssl.SSLError as error:
            raise BadSecurity(f"kafka.ssl_ca_file: {self.ca_file} holds no certificate in PEM") from error
        if self.certificate_file and self.key_file:
            _readable("ssl_certificate_file", self.certificate_file)
            _readable("ssl_key_file", self.key_file)
            try:
                context.load_cert_chain(self.certificate_file, self.key_file, self._give_key_password)
            except ssl.SSLError as error:
                raise BadSecurity(self._why_no_chain(error)) from error
        return context

    def _give_key_password(self) -> str:
        if not self.key_password:  # without this function OpenSSL would ask on the terminal
            raise BadSecurity(f"kafka.ssl_key_file: {self.key_file} is encrypted: set {KEY_PASSWORD} in keys.env")
        return self.key_password

    def _why_no_chain(self, error: ssl.SSLError) -> str:
        reason = error.reason or ""
        if "MISMATCH" in reason:
            return f"kafka.ssl_key_file: {self.key_file} is not the key of {self.certificate_file}"
        if self.key_password and self.key_file and b"ENCRYPTED" in self.key_file.read_bytes():
            return f"kafka.ssl_key_file: {KEY_PASSWORD} does not decrypt {self.key_file}"
        return f"kafka.ssl_certificate_file, kafka.ssl_key_file: {self.certificate_file} and {self.key_file} are no PEM files"


def _readable(setting: str, path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise BadSecurity(f"kafka.{setting}: {error.strerror} ({path})") from error


class _Tokens(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python has no types
    """Gives all clients of a process a valid token, and the same one until shortly before it expires."""

    def __init__(self, fetch: Callable[[], tuple[str, float]]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._token, self._until = "", 0.0

    def token(self) -> str:
        """Return the token. Raises PermissionError if this client gets none, ConnectionError if nobody gives one now."""
        with self._lock:
            if time.monotonic() > self._until:
                self._token, seconds = self._fetch()
                self._until = time.monotonic() + max(0.0, seconds - EARLY_SECONDS)
            return self._token

    def forget(self) -> None:
        """Fetch a new token next time."""
        with self._lock:
            self._until = 0.0


@functools.lru_cache(maxsize=16)
def _tokens_of(security: Security) -> _Tokens:
    return _Tokens(_fetch_of(security))


def _fetch_of(security: Security) -> Callable[[], tuple[str, float]]:
    """Return a function that returns a token and for how many seconds it is valid."""
    if security.token_url is None:
        return lambda: (security.token, 0.0)
    url = security.token_url

    def fetch() -> tuple[str, float]:
        # The client credentials grant: RFC 6749, section 4.4.
        form = {"grant_type": "client_credentials"} | ({"scope": security.scope} if security.scope else {})
        request = urllib.request.Request(url, urllib.parse.urlencode(form).encode())  # noqa: S310 - the setting is http(s)
        request.add_header("Authorization", _basic(security.username or "", security.password))
        request.add_header("Accept", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=TOKEN_SECONDS, context=_issuer_context(security)) as answer:  # noqa: S310
                given = json.loads(answer.read(1_000_000))
            return str(given["access_token"]), float(given.get("expires_in", 0))
        except urllib.error.HTTPError as error:
            temporary = error.code >= 500 or error.code in (408, 429)
            kind = ConnectionError if temporary else PermissionError
            raise kind(
                f"{url} gives client {security.username!r} none: HTTP {error.code}{_reason_of(error)}"
            ) from error
        except KeyError as error:
            raise ConnectionError(f"{url} gives none: its answer has no {error}") from error
        except (OSError, ValueError, TypeError) as error:
            raise ConnectionError(f"{url} gives none: {getattr(error, 'reason', error)}") from error

    return fetch


def _issuer_context(security: Security) -> ssl.SSLContext | None:
    """Return TLS that trusts the system's CAs and that of the brokers; None for an address without TLS."""
    if not str(security.token_url).startswith("https"):
        return None
    context = ssl.create_default_context()
    if security.ca_file:
        context.load_verify_locations(_readable("ssl_ca_file", security.ca_file))
    return context


def _reason_of(error: urllib.error.HTTPError) -> str:
    """Return the error code that the answer carries (RFC 6749, section 5.2), or nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return f" ({json.loads(error.read(100_000))['error']})"
    return ""


def _basic(name: str, password: str) -> str:
    import base64

    pair = ":".join(urllib.parse.quote(part, safe="") for part in (name, password))  # RFC 6749, section 2.3.1
    return "Basic " + base64.b64encode(pair.encode()).decode()
