"""Replay: dead letters that can be read now are published to their topics again, all at once or one by one.

Turns the dead-letter topic into messages of the topics that they came from. `ratchet feedback replay --dlq` and the console
call it. Letters that were settled one by one are rows of the audit log: Kafka deletes no single message.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass

from pipelines.feature_store.event_rows import BadMessage, read_event
from services.ingestion.dead_letters import ORPHAN, PREFIX, publish_cut
from services.ingestion.feedback_gate import FeedbackGate
from serving.messaging.connection import Broker
from serving.messaging.consumer import Backlog
from serving.messaging.publisher import Message, MessageTooLarge, Outgoing, Publisher, Topics
from serving.registry.registry import Registry

# Actions of the audit log, with the letter's position.
REPLAY_ONE, REMOVE_ONE = "dead letter replay", "dead letter remove"


@dataclass(kw_only=True)
class Replayed:
    """How many dead letters of one replay had which outcome."""

    published: int = 0
    still_bad: int = 0
    in_the_log: int = 0
    erased: int = 0
    settled: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts for --json; `erased` and `settled` only if they are not zero."""
        return {key: n for key, n in asdict(self).items() if n or key not in ("erased", "settled")}


@dataclass(frozen=True, kw_only=True)
class WaitingLetter:
    """A dead letter that nobody has replayed or removed. `position` names it: '<topic_id>/<partition>/<offset>' of the original.

    Its bytes are not among the fields: a producer other than serving may have sent a text that is not anonymised.
    """

    position: str
    topic: str
    reason: str
    size: int


def replay(
    broker: Broker,
    topics: Topics,
    gate: FeedbackGate,
    *,
    timeout_s: float,
    settled: Collection[str] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Replayed:
    """Publish dead letters that can be read now to their topics; append the others to the dead letters again.

    Orphans are skipped: their feedback is in the log and joins its prediction when that arrives. Erased events are dropped, and
    so are those whose positions are `settled`.
    Each dead letter is replayed once, or twice if this process dies between publishing and committing; event ids make that
    harmless.

    Raises BrokerUnavailable or RegistryUnavailable.
    """
    done = Replayed()
    gate.refresh()
    seen: set[bytes] = set()  # a consumer that died before its commit has sent the same letter twice
    publisher = Publisher(broker, timeout_s=timeout_s)
    try:
        with Backlog(broker, topics.dead_letters, reader=topics.replay_group) as backlog:
            for letters in backlog.batches():
                wanted: list[tuple[Message, Outgoing]] = []
                for letter in letters:
                    position = _header(letter, "position")
                    if position.decode() in settled:
                        done.settled += 1
                    elif (not position or position not in seen) and (message := _again(letter, topics, gate, done)):
                        wanted.append((letter, message))
                    seen.add(position)
                _publish_again(wanted, topics, publisher, done)
                backlog.done(letters)
                progress(len(letters))
    finally:
        publisher.close()
    return done


def settled_letters(registry: Registry) -> frozenset[str]:
    """Return the positions of the dead letters that were replayed or removed one by one. Raises RegistryUnavailable."""
    return frozenset(str(detail.get("position")) for detail in registry.history.audit_details((REPLAY_ONE, REMOVE_ONE)))


def waiting_letters(broker: Broker, topics: Topics, settled: Collection[str], limit: int) -> list[WaitingLetter]:
    """Return the last dead letters that wait, a partition's newest first, without orphans. Raises BrokerUnavailable."""
    letters = deque[Message](maxlen=limit)
    seen = set(settled)
    with Backlog(broker, topics.dead_letters, reader=topics.replay_group) as backlog:
        for batch in backlog.batches():
            for letter in batch:
                position = _header(letter, "position").decode()
                if position not in seen and not _header(letter, "reason").startswith(ORPHAN.encode()):
                    seen.add(position)
                    letters.append(letter)
    return [
        WaitingLetter(
            position=_header(letter, "position").decode(),
            topic=_header(letter, "topic").decode(),
            reason=_header(letter, "reason").decode(),
            size=len(letter.value or b""),
        )
        for letter in reversed(letters)
    ]


def replay_one(broker: Broker, topics: Topics, gate: FeedbackGate, position: str, *, timeout_s: float) -> Replayed:
    """Publish one dead letter again if it can be read now; the others stay. Raises KeyError, BrokerUnavailable."""
    gate.refresh()
    with Backlog(broker, topics.dead_letters, reader=topics.replay_group) as backlog:
        letters = (letter for batch in backlog.batches() for letter in batch)
        letter = next((one for one in letters if _header(one, "position").decode() == position), None)
    if letter is None:
        raise KeyError(f"no dead letter {position} waits: it was replayed, or its topic no longer holds it")
    done = Replayed()
    message = _again(letter, topics, gate, done)
    if message and done.published:
        publisher = Publisher(broker, timeout_s=timeout_s)
        try:
            _publish_again([(letter, message)], topics, publisher, done)
        finally:
            publisher.close()
    return done


def _again(letter: Message, topics: Topics, gate: FeedbackGate, done: Replayed) -> Outgoing | None:
    if _header(letter, "reason").startswith(ORPHAN.encode()):
        done.in_the_log += 1
        return None
    topic = topics.predictions if _header(letter, "topic") == topics.predictions.encode() else topics.feedback
    try:
        event = read_event(letter.value, "predictions" if topic == topics.predictions else "feedback", letter.headers)
        if gate.is_erased(event):
            done.erased += 1
            return None
        gate.check(event)
    except BadMessage:
        done.still_bad += 1
        return _same_letter(letter, topics)
    done.published += 1
    return Outgoing(topic, letter.key or b"", letter.value or b"", _original_headers(letter))


def _publish_again(
    wanted: Sequence[tuple[Message, Outgoing]], topics: Topics, publisher: Publisher, done: Replayed
) -> None:
    """Publish the messages; one that its topic refuses as too long stays a dead letter."""
    try:
        publisher.publish_many([message for _, message in wanted])
    except MessageTooLarge as error:
        for (letter, message), position in zip(wanted, error.positions, strict=True):
            if position is None:
                if message.topic != topics.dead_letters:
                    done.published, done.still_bad = done.published - 1, done.still_bad + 1
                publish_cut(_same_letter(letter, topics), publisher)


def _same_letter(letter: Message, topics: Topics) -> Outgoing:
    headers = tuple((name, content or b"") for name, content in letter.headers)
    return Outgoing(topics.dead_letters, letter.key or b"", bytes(letter.value or b""), headers)


def _original_headers(message: Message) -> tuple[tuple[str, bytes], ...]:
    return tuple((k, v or b"") for k, v in message.headers if not k.startswith(PREFIX))


def _header(letter: Message, name: str) -> bytes:
    return next((v for k, v in letter.headers if k == PREFIX + name and v), b"")
