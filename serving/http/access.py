"""Who may call: the project's API key, pseudonyms of users, and feedback tokens.

Turns secrets and requests into yes, no, or a keyed hash. Serving and the command line use it. It deliberately knows no
HTTP. Hashes are HMAC-SHA-256 (RFC 2104) under the project's secret, with a purpose in front so that no two uses meet.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from serving.atomic_write import atomic_write


class KeysMissing(FileNotFoundError):
    """keys.env is absent, cannot be read, or lacks a key; the message names the command that makes keys."""


class TokenRefused(PermissionError):
    """The feedback token is forged, of another prediction, or expired."""


@dataclass(frozen=True)
class Keys:
    """What keys.env holds."""

    api_key: str
    secret: str


API_KEY, SECRET = "RATCHET_API_KEY", "RATCHET_SECRET"
_COMMENTS = """\
# Keys of this Ratchet project: keep them out of version control and readable by its owner alone (mode 0600).
# Each line is KEY=VALUE; `. ./keys.env` in a shell reads them too. `ratchet access keys --help` renews them.
# {api}: apps send it as "Authorization: Bearer ...". A new one locks out apps until they are told.
{api}={api_key}
# {secret}: makes pseudonyms of users and feedback tokens. A new one changes every user's pseudonym, and
# refuses the feedback tokens given out before. Nobody but this project's own processes needs it.
{secret_line}
"""


def fresh_key() -> str:
    """Return 32 random bytes as text of letters, digits, `-` and `_`."""
    return secrets.token_urlsafe(32)


def write_keys(path: Path) -> Keys:
    """Make fresh keys and write them with mode 0600; an existing file is kept and read."""
    if path.exists():
        return read_keys(path)
    keys = Keys(api_key=fresh_key(), secret=fresh_key())
    store_keys(path, keys)
    return keys


def store_keys(path: Path, keys: Keys) -> None:
    """Write keys with comments that explain them, mode 0600, replacing the file whole or not at all."""
    text = _COMMENTS.format(api=API_KEY, secret=SECRET, api_key=keys.api_key, secret_line=f"{SECRET}={keys.secret}")
    atomic_write(path, text, mode=0o600)


def read_keys(path: Path) -> Keys:
    """Read keys.env. Raises KeysMissing."""
    found = keys_in(path)
    missing = [name for name in (API_KEY, SECRET) if not found.get(name)]
    if len(missing) == 2:
        raise KeysMissing(f"{path} holds no keys: restore it, or make new ones with `ratchet access keys --renew all`")
    if missing:
        raise KeysMissing(f"{path} lacks {missing[0]}: restore it, or make a new one with `ratchet access keys`")
    for name, value in found.items():
        if not value.isascii() or not value.isprintable() or " " in value:
            raise KeysMissing(
                f"{path}: {name} may hold letters, digits and signs without spaces only: restore it, or make new keys "
                "with `ratchet access keys --renew all`"
            )
    return Keys(api_key=found[API_KEY], secret=found[SECRET])


def keys_in(path: Path) -> dict[str, str]:
    """Return the keys that keys.env holds, by name; comments, `export`, quotes and line ends are a shell's.

    Raises:
        KeysMissing: the file is absent or cannot be read.

    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise KeysMissing(f"{path} is missing: restore it, or make new keys with `ratchet access keys`") from error
    except UnicodeDecodeError as error:
        hint = "restore it, or make new keys with `ratchet access keys --renew all`"
        raise KeysMissing(f"{path} is not text in UTF-8: {hint}") from error
    except OSError as error:
        raise KeysMissing(f"{path} cannot be read: {error.strerror}") from error
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        name = name.removeprefix("export ").strip()
        if equals and name in (API_KEY, SECRET):
            found[name] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    """Return a value without the quotes around it, or without the comment after it."""
    if value[:1] in ("'", '"'):
        return value[1:].partition(value[0])[0]
    return value.partition(" #")[0].strip()


def bearer_matches(keys: Keys, authorization: bytes) -> bool:
    """Return whether an Authorization header carries the API key, in constant time; a scheme has no case (RFC 9110, 11.1)."""
    scheme, _, key = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(b" \t"), keys.api_key.encode())


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


def check_token_alone(token: str) -> int:
    """Return the Unix second at which `token` expires, before its prediction is known. Raises TokenRefused."""
    found = re.fullmatch(r"([0-9]{1,12})\.[0-9a-f]{32}", token)
    if not found:
        raise TokenRefused("the feedback token is malformed")
    if time.time() > int(found[1]):
        raise TokenRefused("the feedback token has expired")
    return int(found[1])


def check_token(secret: str, prediction_id: str, token: str) -> None:
    """Raises TokenRefused unless `token` opens `prediction_id` now."""
    expires = check_token_alone(token)
    if not hmac.compare_digest(token.encode(), issue_token(secret, prediction_id, expires).encode()):
        raise TokenRefused("the feedback token is not of this prediction")


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
