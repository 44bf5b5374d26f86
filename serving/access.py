"""Who may call: the project's API key, pseudonyms of users, and feedback tokens.

Turns secrets and requests into yes, no, or a keyed hash. Serving and the command line use it. It deliberately knows no
HTTP. Hashes are HMAC-SHA-256 (RFC 2104) under the project's secret, with a purpose in front so that no two uses meet.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


class KeysMissing(FileNotFoundError):
    """keys.env is absent or incomplete."""


class TokenRefused(PermissionError):
    """The feedback token is forged, of another prediction, or expired."""


@dataclass(frozen=True)
class Keys:
    """What keys.env holds."""

    api_key: str
    secret: str


def write_keys(path: Path) -> Keys:
    """Make fresh keys and write them with mode 0600; an existing file is kept and read."""
    if path.exists():
        return read_keys(path)
    keys = Keys(api_key=secrets.token_urlsafe(32), secret=secrets.token_urlsafe(32))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"RATCHET_API_KEY={keys.api_key}\nRATCHET_SECRET={keys.secret}\n")
    return keys


def read_keys(path: Path) -> Keys:
    """Read keys.env. Raises KeysMissing."""
    try:
        pairs = dict(line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
        return Keys(api_key=pairs["RATCHET_API_KEY"].strip(), secret=pairs["RATCHET_SECRET"].strip())
    except (OSError, KeyError) as error:
        raise KeysMissing(
            f"{path.name} with RATCHET_API_KEY and RATCHET_SECRET is missing: run ratchet init"
        ) from error


def bearer_matches(keys: Keys, authorization: bytes) -> bool:
    """Whether an Authorization header carries the API key, in constant time."""
    return hmac.compare_digest(authorization, f"Bearer {keys.api_key}".encode())


@lru_cache(maxsize=8)
def _keyed(secret: str) -> hmac.HMAC:
    return hmac.new(secret.encode(), digestmod=hashlib.sha256)


def keyed_hash(secret: str, purpose: str, value: str) -> bytes:
    """32 bytes that nobody without the secret can compute."""
    # A copy of the keyed state: hmac.digest would set up the key anew, and let the interpreter's lock go for a moment.
    state = _keyed(secret).copy()
    state.update(f"{purpose}\0{value}".encode())
    return state.digest()


def pseudonym(secret: str, user: str) -> str:
    """What stands for a user in every event: 32 hex digits."""
    return keyed_hash(secret, "user", user).hex()[:32]


def keyed_share(secret: str, purpose: str, value: str) -> float:
    """A number in [0, 1) that is fixed for `value`: below a rate, the value is in that share."""
    return int.from_bytes(keyed_hash(secret, purpose, value)[:8]) / 2**64


def issue_token(secret: str, prediction_id: str, expires: int) -> str:
    """A token that opens one prediction's feedback until the Unix second `expires`."""
    return f"{expires}.{keyed_hash(secret, 'feedback', f'{prediction_id}.{expires}').hex()[:32]}"


def check_token(secret: str, prediction_id: str, token: str) -> None:
    """Raises TokenRefused unless `token` opens `prediction_id` now."""
    expires, _, _ = token.partition(".")
    if not expires.isdecimal() or len(expires) > 12:
        raise TokenRefused("the feedback token is malformed")
    if not hmac.compare_digest(token.encode(), issue_token(secret, prediction_id, int(expires)).encode()):
        raise TokenRefused("the feedback token is not of this prediction")
    if time.time() > int(expires):
        raise TokenRefused("the feedback token has expired")


@dataclass
class TokenUses:
    """How often each feedback token was used in this worker; the least recent are forgotten."""

    limit: int
    seen: OrderedDict[str, int]

    def use(self, token: str) -> bool:
        """Count one use; False past the limit."""
        uses = self.seen.pop(token, 0) + 1
        self.seen[token] = uses
        if len(self.seen) > 100_000:
            self.seen.popitem(last=False)
        return uses <= self.limit
