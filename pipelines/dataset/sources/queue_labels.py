"""Labels of the queue as rows of a dataset: which judge, which train, and which texts wait.

Turns the registry's queue into `QueueRows`, which project_dataset.py adds to the rows of files.

An audit text is a fair sample of traffic, so its label judges and never trains. The texts of a settled round are no fair sample,
because two models disagreed on them: they train, but for the share `dataset.settled_evidence`, drawn by a keyed hash of the text.
While a round is settling, its labels neither train nor judge: neither its candidate nor one that supersedes it has seen them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipelines.dataset.files import FileRow
from pipelines.dataset.split import draw
from schemas.queue import DecidedItem
from schemas.records import FINAL_STATES, RoundRecord
from schemas.settings import Settings

EVIDENCE_DRAW = 3  # bits of the key that no other draw uses


@dataclass(frozen=True)
class QueueRows:
    """Rows that judge, rows that train, and audit texts whose feedback waits for a label."""

    judges: Sequence[FileRow] = ()
    trains: Sequence[FileRow] = ()
    waiting: frozenset[str] = frozenset()


class QueueItems(Protocol):
    """The part of the queue that datasets read."""

    def decided(self, round_id: str | None = None) -> list[DecidedItem]:
        """Return the labelled items of a round, or of the audit sample."""

    def waiting(self) -> frozenset[str]:
        """Return the audit texts that wait for a label."""


class Registry(Protocol):
    """The part of the registry that datasets read."""

    @property
    def queue_items(self) -> QueueItems:
        """Return the items of the queue."""

    def rounds(self) -> list[RoundRecord]:
        """Return all rounds."""


def queue_rows(registry: Registry, settings: Settings) -> QueueRows:
    """Return the rows of the project's queue."""
    audited = registry.queue_items.decided()
    settled = [
        item
        for record in registry.rounds()
        if record.settling is not None and record.state in FINAL_STATES
        for item in registry.queue_items.decided(record.round_id)
        if item.task != "generation"  # the better of two texts is not yet a good one
    ]
    evidence = {item.key for item in settled if draw(item.key, EVIDENCE_DRAW) < settings.dataset.settled_evidence}
    return QueueRows(
        judges=_rows([*audited, *(item for item in settled if item.key in evidence)]),
        trains=_rows(item for item in settled if item.key not in evidence),
        waiting=registry.queue_items.waiting(),
    )


def _rows(items: Iterable[DecidedItem]) -> list[FileRow]:
    return [FileRow(item.text, item.label, item.metadata) for item in items]
