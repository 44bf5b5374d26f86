"""Dead letters: messages that no retry would store.

Turns a message into its dead letter: the original bytes, key and headers, plus headers with origin and reason.
pipelines/feature_store/event_rows.py decides which messages are bad, replay.py publishes dead letters again.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence

from services.ingestion.micro_batch import UNREADABLE as UNDECODED
from services.ingestion.troubles import CUT, DEAD_LETTERS, UNREADABLE, Counted
from serving.messaging.publisher import (
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    Message,
    MessageTooLarge,
    Outgoing,
    Publisher,
    Topics,
)
from serving.messaging.record_batches import Unreadable

log = logging.getLogger("ratchet.feedback_consumer")

PREFIX = "ratchet-"  # of the headers that a dead letter has besides the original ones
CUT_HEADER = f"{PREFIX}cut"  # header of a dead letter that was cut: which of headers, key and value were
FRAME_BYTES = 200  # of Kafka around a message, at most
MAX_LETTER_BYTES = MAX_MESSAGE_BYTES + HEADER_BYTES - FRAME_BYTES
MIN_LETTER_BYTES = 2000
MAX_CUT_KEY = 1000
MAX_REASON_CHARS = 500
ORPHAN = "orphan: "  # the reason of expired feedback without prediction begins with it


def dead_letter(topics: Topics, message: Message, partition_key: str, reason: str) -> Outgoing:
    """Return the dead letter of a message of the partition '<topic_id>/<partition>'."""
    origin = {
        "topic": message.topic,
        "partition": str(message.partition),
        "offset": str(message.offset),
        "position": f"{partition_key}/{message.offset}",
        "reason": reason[:MAX_REASON_CHARS],
    }
    kept = bytes(message.value or b"")[:MAX_MESSAGE_BYTES]
    if message.value is None:
        origin["tombstone"] = "1"
    elif len(kept) < len(message.value):
        origin["bytes"] = str(len(message.value))
    if isinstance(message.value, Unreadable):
        origin["undecoded-records"] = str(message.value.records)
    if nulls := [name for name, content in message.headers if content is None]:
        origin["null-headers"] = ",".join(nulls)[:MAX_REASON_CHARS]  # kafka-python sends none
    original = tuple((name, content or b"") for name, content in message.headers if not name.startswith(PREFIX))
    headers = (*original, *((PREFIX + name, text.encode()) for name, text in origin.items()))
    return _cut(Outgoing(topics.dead_letters, message.key or b"", kept, headers), MAX_LETTER_BYTES)


def publish(letters: Sequence[Outgoing], publisher: Publisher) -> list[Counted]:
    """Publish the dead letters; those that their topic refuses are cut until they fit.

    Returns:
        What there is to count, by kind and subject.

    Raises:
        BrokerUnavailable: at least one was not confirmed in time.

    """
    counted = []
    try:
        publisher.publish_many(letters)
    except MessageTooLarge as error:
        for letter, position in zip(letters, error.positions, strict=True):
            if position is None:
                counted.append(Counted(CUT, _subject(letter), 1, None, f"{publish_cut(letter, publisher)} bytes"))
    for (kind, subject), alike in _by_kind_and_subject(letters).items():
        offset, reason = int(_header_of(alike[-1], "offset")), _header_of(alike[-1], "reason").decode()
        records = sum(int(_header_of(letter, "undecoded-records") or 1) for letter in alike)
        counted.append(Counted(kind, subject, records, offset, reason))
    return counted


def publish_cut(letter: Outgoing, publisher: Publisher) -> int:
    """Publish a letter that its topic refused, cut by halves until it fits; return its size, 0 if it never does."""
    limit = 2 * _size(letter)
    while limit > MIN_LETTER_BYTES:
        limit //= 2
        with contextlib.suppress(MessageTooLarge):
            publisher.publish_many([_cut(letter, limit)])
            log.warning("a dead letter was cut to %d bytes: raise max.message.bytes of %s", limit, letter.topic)
            return limit
    log.error("%s takes no dead letter, not even one of %d bytes: dropped", letter.topic, limit)
    return 0


def _cut(letter: Outgoing, limit: int) -> Outgoing:
    """Return the letter within `limit` bytes: without original headers, then with a cut key, then with a cut value."""
    if _size(letter) <= limit:
        return letter
    headers = [(name, content) for name, content in letter.headers if name.startswith(PREFIX) and name != CUT_HEADER]
    key, value, cut = letter.key, letter.value, ["headers"]
    room = limit - sum(len(name) + len(content) for name, content in headers) - FRAME_BYTES
    if len(key) + len(value) > room and len(key) > MAX_CUT_KEY:
        key, cut = key[:MAX_CUT_KEY], [*cut, "key"]
    if len(key) + len(value) > room:
        value, cut = value[: max(0, room - len(key))], [*cut, "value"]
        if not any(name == f"{PREFIX}bytes" for name, _ in headers):
            headers.append((f"{PREFIX}bytes", str(len(letter.value)).encode()))
    headers.append((CUT_HEADER, ",".join(cut).encode()))
    return Outgoing(letter.topic, key, value, tuple(headers))


def _size(letter: Outgoing) -> int:
    headers = sum(len(name.encode()) + len(content) + 10 for name, content in letter.headers)
    return len(letter.key) + len(letter.value) + headers + FRAME_BYTES


def _by_kind_and_subject(letters: Sequence[Outgoing]) -> dict[tuple[str, str], list[Outgoing]]:
    groups: dict[tuple[str, str], list[Outgoing]] = {}
    for letter in letters:
        kind = UNREADABLE if _header_of(letter, "reason").startswith(UNDECODED.encode()) else DEAD_LETTERS
        groups.setdefault((kind, _subject(letter)), []).append(letter)
    return groups


def _subject(letter: Outgoing) -> str:
    return f"{_header_of(letter, 'topic').decode()}/{_header_of(letter, 'partition').decode()}"


def _header_of(letter: Outgoing, name: str) -> bytes:
    return next((v for k, v in letter.headers if k == PREFIX + name), b"")


def letters_of(
    topics: Topics, bad: Sequence[tuple[Message, str]], partition_key: Callable[[str, int], str]
) -> list[Outgoing]:
    """Return the dead letters of a batch's bad messages."""
    return [dead_letter(topics, m, partition_key(m.topic, m.partition), reason) for m, reason in bad]
