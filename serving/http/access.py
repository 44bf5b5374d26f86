"""Access control: the project's API key, pseudonyms of users, and feedback tokens.

Reads and writes keys.env, checks keys and tokens, and computes keyed hashes. Serving and the command line use it. Hashes are
HMAC-SHA-256 (RFC 2104) under the project's secret; a purpose precedes each value, so that hashes for different uses never
collide.
"""

import contextlib
import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from serving.atomic_write import atomic_write
from serving.keys_file import KeysMissing, assigned, assignments, lines


class TokenRefused(PermissionError):
    """The feedback token is forged, expired, or belongs to another prediction."""


@dataclass(frozen=True)
class Keys:
    """The API key and the secret of keys.env."""

    api_key: str
    secret: str


API_KEY, SECRET = "RATCHET_API_KEY", "RATCHET_SECRET"
_COMMENTS = """\
# Keys of this Ratchet project: keep them out of version control and readable by its owner alone (mode 0600).
# Each line is KEY=VALUE; `. ./keys.env` in a shell reads them too. `ratchet access keys --help` renews them.
# {api}: apps send it as "Authorization: Bearer ...". A new one locks out apps until they are told.
{api}={api_key}
# {secret}: makes pseudonyms of users and feedback tokens. A new one changes every user's pseudonym, and
# refuses the feedback tokens and prediction ids given out before. Nobody but this project's own processes needs it.
{secret_line}
"""


def fresh_key() -> str:
    """Return 32 random bytes as text of letters, digits, `-` and `_`."""
    return secrets.token_urlsafe(32)


def write_keys(path: Path) -> Keys:
    """Return the keys of an existing file, else make keys and write them with mode 0600."""
    if path.exists():
        return read_keys(path)
    keys = Keys(api_key=fresh_key(), secret=fresh_key())
    store_keys(path, keys)
    return keys


def store_keys(path: Path, keys: Keys) -> None:
    """Replace API key and secret in keys.env atomically, with mode 0600 and comments; other assignments stay."""
    text = _COMMENTS.format(api=API_KEY, secret=SECRET, api_key=keys.api_key, secret_line=f"{SECRET}={keys.secret}")
    with contextlib.suppress(KeysMissing):
        others = [line for line in lines(path) if assigned(line)[0] not in ("", API_KEY, SECRET)]
        text += "".join(f"{line}\n" for line in others)
    atomic_write(path, text, mode=0o600)


def read_keys(path: Path) -> Keys:
    """Return the keys of keys.env. Raises KeysMissing if one is absent or has an invalid character."""
    values = keys_in(path)
    missing = [name for name in (API_KEY, SECRET) if not values.get(name)]
    if len(missing) == 2:
        raise KeysMissing(f"{path} holds no keys: restore it, or make new ones with `ratchet access keys --renew all`")
    if missing:
        raise KeysMissing(f"{path} lacks {missing[0]}: restore it, or make a new one with `ratchet access keys`")
    for name, value in values.items():
        if not value.isascii() or not value.isprintable() or " " in value:
            raise KeysMissing(
                f"{path}: {name} needs printable ASCII without spaces: restore it, or make new keys "
                "with `ratchet access keys --renew all`"
            )
    return Keys(api_key=values[API_KEY], secret=values[SECRET])


def keys_in(path: Path) -> dict[str, str]:
    """Return API key and secret of keys.env by name, as far as it holds them. Raises KeysMissing."""
    return {name: value for name, value in assignments(path).items() if name in (API_KEY, SECRET)}


def bearer(authorization: bytes) -> bytes:
    """Return the key of an Authorization header, empty without one; a scheme has no case (RFC 9110, section 11.1)."""
    scheme, _, key = authorization.partition(b" ")
    return key.strip(b" \t") if scheme.lower() == b"bearer" else b""


@lru_cache(maxsize=8)
def _keyed(secret: str) -> hmac.HMAC:
    return hmac.new(secret.encode(), digestmod=hashlib.sha256)


def keyed_hash(secret: str, purpose: str, value: str) -> bytes:
    """Return the HMAC of `value` for a purpose: 32 bytes that cannot be computed without the secret."""
    # Copying the keyed state is faster than hmac.digest, which sets up the key again and releases the GIL.
    state = _keyed(secret).copy()
    state.update(f"{purpose}\0{value}".encode())
    return state.digest()


def pseudonym(secret: str, user: str) -> str:
    """Return the pseudonym that replaces a user in every event: 32 hex digits."""
    return keyed_hash(secret, "user", user).hex()[:32]


def keyed_share(secret: str, purpose: str, value: str) -> float:
    """Return a fixed number in [0, 1) for `value`; numbers below a rate select that share of values."""
    return int.from_bytes(keyed_hash(secret, purpose, value)[:8]) / 2**64


def issue_token(secret: str, prediction_id: str, expires: int) -> str:
    """Return a token that permits feedback on one prediction until the Unix second `expires`."""
    return f"{expires}.{keyed_hash(secret, 'feedback', f'{prediction_id}.{expires}').hex()[:32]}"


def check_token_alone(token: str) -> int:
    """Return the Unix second at which `token` expires. Raises TokenRefused if it is malformed or expired."""
    match = re.fullmatch(r"([0-9]{1,12})\.[0-9a-f]{32}", token)
    if not match:
        raise TokenRefused("the feedback token is malformed")
    if time.time() > int(match[1]):
        raise TokenRefused("the feedback token has expired")
    return int(match[1])


def check_token(secret: str, prediction_id: str, token: str) -> None:
    """Raise TokenRefused unless `token` permits feedback on `prediction_id` now."""
    expires = check_token_alone(token)
    if not hmac.compare_digest(token.encode(), issue_token(secret, prediction_id, expires).encode()):
        raise TokenRefused("the feedback token belongs to another prediction")
