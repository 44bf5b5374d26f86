"""Dead letters: messages that no retry would store, and their replay.

Turns a message into its dead letter: the original bytes, key and headers, plus headers with origin and reason.
`ratchet feedback replay --dlq` publishes dead letters to their topics again. pipelines/feature_store/event_rows.py decides
which messages are bad.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from pipelines.feature_store.event_rows import BadMessage, read_event
from schemas.events import FeedbackReceived
from services.ingestion.feedback_gate import FeedbackGate
from serving.messaging.consumer import Backlog
from serving.messaging.publisher import MAX_MESSAGE_BYTES, Message, Outgoing, Publisher, Topics

PREFIX = "ratchet-"
ORPHAN = "orphan: "  # the reason of expired feedback without prediction begins with it


@dataclass(kw_only=True)
class Replayed:
    """How many dead letters of one replay had which outcome."""

    published: int = 0
    still_bad: int = 0
    in_the_log: int = 0
    erased: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts for --json; `erased` only if it is not zero."""
        return {key: n for key, n in asdict(self).items() if n or key != "erased"}


def dead_letter(topics: Topics, message: Message, partition_key: str, reason: str) -> Outgoing:
    """Return the dead letter of a message of the partition '<topic_id>/<partition>'."""
    kept = (message.value or b"")[:MAX_MESSAGE_BYTES]
    origin = {
        "topic": message.topic,
        "partition": str(message.partition),
        "offset": str(message.offset),
        "position": f"{partition_key}/{message.offset}",
        "reason": reason,
    }
    if message.value is None:
        origin["tombstone"] = "1"
    elif len(kept) < len(message.value):
        origin["bytes"] = str(len(message.value))
    headers = [*_original_headers(message), *((PREFIX + k, v.encode()) for k, v in origin.items())]
    return Outgoing(topics.dead_letters, message.key or b"", kept, tuple(headers))


def replay(
    bootstrap: str,
    topics: Topics,
    gate: FeedbackGate,
    *,
    timeout_s: float,
    progress: Callable[[int], None] = lambda _: None,
) -> Replayed:
    """Publish dead letters that can be read now to their topics; append the others to the dead letters again.

    Orphans are skipped: their feedback is in the log and joins its prediction when that arrives. Erased events are dropped.
    Each dead letter is replayed once, or twice if this process dies between publishing and committing; event ids make that
    harmless.

    Raises BrokerUnavailable or RegistryUnavailable.
    """
    done = Replayed()
    gate.refresh()
    seen: set[bytes] = set()  # a consumer that died before its commit has sent the same letter twice
    publisher = Publisher(bootstrap, timeout_s=timeout_s)
    try:
        with Backlog(bootstrap, topics.dead_letters, reader=f"{topics.dead_letters}.replay") as backlog:
            for letters in backlog.batches():
                wanted = []
                for letter in letters:
                    position = _header(letter, "position")
                    if (not position or position not in seen) and (message := _again(letter, topics, gate, done)):
                        wanted.append(message)
                    seen.add(position)
                publisher.publish_many(wanted)
                backlog.done(letters)
                progress(len(letters))
    finally:
        publisher.close()
    return done


def _again(letter: Message, topics: Topics, gate: FeedbackGate, done: Replayed) -> Outgoing | None:
    if _header(letter, "reason").startswith(ORPHAN.encode()):
        done.in_the_log += 1
        return None
    topic = topics.predictions if _header(letter, "topic") == topics.predictions.encode() else topics.feedback
    try:
        event = read_event(letter.value, "predictions" if topic == topics.predictions else "feedback")
        if gate.is_erased(event):
            done.erased += 1
            return None
        if isinstance(event, FeedbackReceived):
            gate.check(event)
    except BadMessage:
        done.still_bad += 1
        return Outgoing(topics.dead_letters, letter.key or b"", letter.value or b"", letter.headers)
    done.published += 1
    return Outgoing(topic, letter.key or b"", letter.value or b"", _original_headers(letter))


def _original_headers(message: Message) -> tuple[tuple[str, bytes], ...]:
    return tuple((k, v) for k, v in message.headers if not k.startswith(PREFIX))


def _header(letter: Message, name: str) -> bytes:
    return next((v for k, v in letter.headers if k == PREFIX + name), b"")


def letters_of(
    topics: Topics, bad: Sequence[tuple[Message, str]], partition_key: Callable[[str, int], str]
) -> list[Outgoing]:
    """Return the dead letters of a batch's bad messages."""
    return [dead_letter(topics, m, partition_key(m.topic, m.partition), reason) for m, reason in bad]
