"""Reports of the feedback consumers: which process reported last, and what it stores next.

Turns notes of the kind "reported" into the seconds of silence. The consumer writes such a note every few seconds; `ratchet
status`, `ratchet doctor`, `ratchet up` and serving's /metrics read it. A consumer that is frozen cannot say so itself.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

STUCK, REPORTED = "stuck", "reported"  # kinds of notes
QUIET_SECONDS = 20.0  # without a report: the consumers hang, or work on one batch for too long


@dataclass(frozen=True)
class Silence:
    """How long no consumer has reported, and '<topic>/<partition>' -> the offset that was stored next."""

    seconds: float
    places: Mapping[str, int]

    def __str__(self) -> str:
        return (
            f"the consumer has not reported for {self.seconds:.0f} s, when next was {place_line(self.places)}: it hangs, or one "
            "batch takes that long; see state/logs/consumer.log"
        )


def silence(reports: Iterable[tuple[float, str]]) -> Silence | None:
    """Return the silence of all consumers; None if one reported within QUIET_SECONDS, or if none ever did.

    `reports`: the age in seconds and the detail of each note of the kind "reported".
    """
    newest = min(reports, default=None)
    if newest is None or newest[0] <= QUIET_SECONDS:
        return None
    return Silence(newest[0], places(newest[1]))


def places(detail: str) -> dict[str, int]:
    """Return '<topic>/<partition>' -> the offset that is stored next, given the detail of a note of the kind "reported"."""
    return {str(partition): int(offset) for partition, offset in json.loads(detail or "{}").items()}


def place_line(places: Mapping[str, int]) -> str:
    """Return the places as one line, for messages."""
    return ", ".join(f"{partition} offset {offset}" for partition, offset in sorted(places.items())) or "not known yet"
