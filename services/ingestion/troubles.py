"""Troubles of ingestion: what was lost or passed over, what lasts, and the way out of each.

Turns what the consumer notices into notes in the registry and metrics, and a note into the sentence that `ratchet status` and
`ratchet doctor` show. A count that cannot be written is an error: nothing is lost silently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from schemas.consumer_reports import QUIET_SECONDS, REPORTED, STUCK, Silence, silence

if TYPE_CHECKING:  # `ratchet status` shows notes without loading SQLAlchemy
    from services.ingestion.metrics import ConsumerMetrics
    from serving.registry.registry import Registry

EXPIRED, REWRITTEN, UNREADABLE, DEAD_LETTERS, CUT = "expired", "rewritten", "unreadable", "dead letters", "cut"
TOPIC = "topic"
LASTING = (STUCK, TOPIC)  # kinds that go away by themselves once the cause is mended; the others are counts

_SENTENCES = {
    EXPIRED: "{count} messages of {subject} were deleted by retention before they were stored (the last: {detail}): raise "
    "retention.ms above the longest downtime",
    REWRITTEN: "the broker's log of {subject} was replaced by an older copy ({count} times; {detail}); it is read again from its "
    "start: nothing that was stored is lost",
    UNREADABLE: "{count} records of {subject} cannot be decoded, the last at offset {last_offset}: {detail}; their bytes are "
    "dead letters: mend the producer",
    DEAD_LETTERS: "{count} messages of {subject} are dead letters, the last at offset {last_offset}: {detail}; once the cause "
    "is mended: `ratchet feedback replay --dlq`",
    CUT: "{count} dead letters of {subject} were cut to fit their topic, the last to {detail}: raise max.message.bytes",
    STUCK: "consumer {subject}: {detail}",
    TOPIC: "{subject} {detail}",
}


@dataclass(frozen=True)
class Counted:
    """Messages of one kind and subject to count."""

    kind: str
    subject: str
    count: int
    offset: int | None
    detail: str


class Troubles:
    """Writes the notes of one consumer."""

    def __init__(self, registry: "Registry", metrics: "ConsumerMetrics") -> None:
        self._registry, self._metrics = registry, metrics

    def count(self, kind: str, subject: str, count: int, *, offset: int | None = None, detail: str = "") -> None:
        """Count events of a kind. Raises RegistryUnavailable."""
        self._registry.count_ingestion(kind, subject, count, offset=offset, detail=detail)
        self._metrics.troubles.labels(kind).inc(count)

    def count_all(self, counted: Sequence[Counted]) -> None:
        """Count several kinds. Raises RegistryUnavailable."""
        for one in counted:
            self.count(one.kind, one.subject, one.count, offset=one.offset, detail=one.detail)

    def show(self, kind: str, details: Mapping[str, str], *, prefix: str = "") -> None:
        """Replace the notes of a lasting kind: subject -> detail. Raises RegistryUnavailable."""
        self._registry.show_ingestion(kind, details, prefix=prefix)


def lasting(notes: Sequence[Mapping[str, Any]], now: datetime, *, up: bool) -> list[str]:
    """Return what is wrong now, with the way out; `up`: the consumer of this machine should be running."""
    # A stuck consumer renews its note with every report: an older one is of a consumer that was killed.
    wrong = [
        text
        for note in notes
        if note["kind"] in LASTING and (note["kind"] == TOPIC or _age_s(note, now) <= QUIET_SECONDS)
        if (text := sentence(note))
    ]
    silent = silence_of(notes, now) if up else None
    return [*wrong, str(silent)] if silent else wrong


def silence_of(notes: Sequence[Mapping[str, Any]], now: datetime) -> Silence | None:
    """Return for how long no consumer has reported; None if one did."""
    return silence((_age_s(note, now), note["detail"]) for note in notes if note["kind"] == REPORTED)


def counted(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what was lost, passed over or set aside since the project began."""
    return [text for note in notes if note["kind"] not in LASTING and (text := sentence(note))]


def _age_s(note: Mapping[str, Any], now: datetime) -> float:
    return (now - datetime.fromisoformat(note["noted_at"])).total_seconds()


def sentence(note: Mapping[str, Any]) -> str | None:
    """Return what a note says, with the way out; None for a note that is no trouble."""
    template = _SENTENCES.get(note["kind"])
    return template.format_map(note) if template else None
