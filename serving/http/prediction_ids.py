"""Prediction ids that any worker recognises: UUIDv7 whose last six digits are a keyed checksum.

Makes an id for each prediction, and tells whether an id is one that this project made. responses.py and guard.py call it.

A worker cannot ask the event log: a prediction reaches it a while after the answer, and POST /feedback may come sooner. The
checksum needs no store. An id is known from the moment it is made, in every worker, for as long as the secret lasts.

Of the 74 free bits of a UUIDv7 (RFC 9562, section 5.7), 24 are the checksum and 50 random. At 10,000 predictions a second, two
ids collide about once in 700 years. A random id passes once in 16.7 million tries: the checksum finds
mistakes. It grants nothing.
"""

import hmac
import uuid
from datetime import UTC, datetime

from schemas.events import new_id
from serving.http.access import keyed_hash

CHECK_DIGITS = 6


def new_prediction_id(secret: str) -> str:
    """Return a new UUIDv7 that `is_ours` recognises under the same secret."""
    stem = new_id()[:-CHECK_DIGITS]
    return stem + _check_digits(secret, stem)


def is_ours(secret: str, prediction_id: str, signed_since: datetime | None) -> bool:
    """Return whether this project may have made an id.

    Args:
        secret: the project's.
        prediction_id: a UUID in its canonical form.
        signed_since: ids made before this time have no checksum and count as ours; None: every id has one.

    """
    stem, check = prediction_id[:-CHECK_DIGITS], prediction_id[-CHECK_DIGITS:]
    if hmac.compare_digest(check, _check_digits(secret, stem)):
        return True
    parsed = uuid.UUID(prediction_id)
    return signed_since is not None and parsed.version == 7 and _made_at(parsed) < signed_since


def _check_digits(secret: str, stem: str) -> str:
    return keyed_hash(secret, "prediction id", stem).hex()[:CHECK_DIGITS]


def _made_at(prediction_id: uuid.UUID) -> datetime:
    milliseconds = min(prediction_id.int >> 80, 253_402_300_799_000)  # the year 9999
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
