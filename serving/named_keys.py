"""Named keys: high-entropy secrets that identify a person or an app, of which only the hash is stored.

Makes keys, and turns a presented key and stored hashes into a `Person`. The registry stores the hashes; serving checks keys
against a copy of them. This module knows no database and no HTTP.

A key is `ratchet_<id>_<secret>`. The id is public: it selects one stored hash, and names the key in lists and logs. The secret
holds 256 random bits, so a plain SHA-256 is enough. A slow password hash (argon2, PBKDF2) slows down guesses at secrets that
people choose. Nobody guesses 256 random bits at any speed, and a slow hash would cost CPU at every request. NIST SP 800-63B-3,
section 5.1.2.2, asks for slow salted hashes only below 112 bits of entropy. Hashes are compared in constant time.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import datetime

from schemas.records import NamedKey, Person

ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # without l, o, 0 and 1, which people confuse
ID_CHARS = 10
_KEY = re.compile(rf"ratchet_([{ID_ALPHABET}]{{{ID_CHARS}}})_[A-Za-z0-9_-]{{43}}")
_NO_HASH = hashlib.sha256(b"").hexdigest()


def make_key() -> tuple[str, str]:
    """Return the id of a new key, and the key itself."""
    key_id = "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_CHARS))
    return key_id, f"ratchet_{key_id}_{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """Return the SHA-256 of a key as 64 hex digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_id_of(key: str) -> str | None:
    """Return the id in a key; None if the text has not the form of a key."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def person_of(keys: Mapping[str, NamedKey], key: str, now: datetime) -> Person | None:
    """Return who presents a key; None if it is unknown, wrong, revoked or expired.

    Args:
        keys: the stored keys by id.
        key: as presented.
        now: aware time at which expiry is checked.

    """
    key_id = key_id_of(key)
    stored = keys.get(key_id) if key_id else None
    matches = hmac.compare_digest(key_hash(key), stored.key_hash if stored else _NO_HASH)
    return stored.person() if stored and matches and stored.valid(now) else None
