"""The labelling queue as values: what a reviewer sees, what a label did, how far a round's labels are.

The registry's queue returns them; the command line and the console show them. What a reviewer sees never names the model
that gave an answer.
"""

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field

from schemas.events import Frozen
from schemas.targets import Task

ItemKind = Literal["audit", "disagreement"]


class ItemState(StrEnum):
    """The state of a queue item. Only LABELLED items count."""

    OPEN = "open"
    LABELLED = "labelled"
    CONFLICT = "conflict"
    DISPUTED = "disputed"
    UNCLEAR = "unclear"


class LabelOutcome(StrEnum):
    """What a label did to its item."""

    RECORDED = "recorded"
    UNCHANGED = "unchanged"
    REPLACED = "replaced"
    AGREED = "agreed"
    CONFLICT = "conflict"
    RESOLVED = "resolved"
    DISPUTED = "disputed"


class NewItem(Frozen):
    """A text to be labelled. An audit item has no answers; a disagreement has those of both models, which differ."""

    kind: ItemKind
    round_id: str | None = Field(default=None, description="round that waits for the label; audit: none")
    task: Task
    key: str = Field(description="the text's key in the split ledger")
    text: str
    champion_answer: str | None = Field(default=None, description="canonical target")
    candidate_answer: str | None = Field(default=None, description="canonical target")
    metadata: dict[str, str] = Field(default_factory=dict)
    expires_at: AwareDatetime | None = Field(default=None, description="labels are refused from then on; None: never")


class QueueItem(Frozen):
    """What a reviewer sees of an item: the text and, without their authors, the answers in shuffled order."""

    item_id: str
    kind: ItemKind
    round_id: str | None
    task: Task
    text: str
    answers: tuple[str, ...] = Field(description="canonical targets in shuffled order; audit: none")
    labels: tuple[str, ...] = Field(description="labels that may be given; numbers and texts: none")
    metadata: dict[str, str]
    state: ItemState
    label: str | None = Field(description="the label that counts, None until there is one")
    voters: int = Field(description="number of people who labelled it")
    leased_to: str | None
    leased_until: AwareDatetime | None


class LabelResult(Frozen):
    """What a label did: the outcome, and the item's state and label afterwards."""

    item_id: str
    outcome: LabelOutcome
    state: ItemState
    label: str | None


class DecidedItem(Frozen):
    """A labelled item with its answers' authors, in the order in which items were decided. Not for reviewers."""

    item_id: str
    kind: ItemKind
    round_id: str | None
    task: Task
    key: str
    text: str
    metadata: dict[str, str]
    champion_answer: str | None
    candidate_answer: str | None
    label: str
    decided_at: AwareDatetime


class QueueProgress(Frozen):
    """How far the labels of a round are, or those of the audit sample (`round_id` None).

    `wins` and `losses` of the candidate stay None until the round has its verdict.
    """

    round_id: str | None
    state: str = Field(description="state of the round; audit: 'audit sample'")
    labels: int = Field(description="items with a label that counts")
    about: int | None = Field(default=None, description="estimated labels in total; audit: none")
    open: int = Field(description="items that wait for a first label")
    conflicts: int = Field(default=0, description="items that wait for a third person")
    disputed: int = Field(default=0, description="items on which three people or more disagree; they do not count")
    unclear: int = Field(default=0, description="items that two people could not label")
    wins: int | None = None
    losses: int | None = None

    @property
    def line(self) -> str:
        """Return "14 of about 40 labels", or the count alone where no estimate exists."""
        total = f" of about {self.about}" if self.about is not None else ""
        waiting = f", {self.conflicts} wait for a third person" if self.conflicts else ""
        return f"{self.labels}{total} labels{waiting}"
