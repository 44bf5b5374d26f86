"""Rows of the labelling queue as values, and values as rows.

Turns rows of `queue_items` and `queue_votes` into what schemas/queue.py names, for queue.py. Answers are shuffled here,
once, when an item is added: a row keeps which answer is the candidate's, and `as_item` leaves it out.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from schemas.events import new_id
from schemas.queue import DecidedItem, ItemState, NewItem, QueueItem
from schemas.targets import LABELLED
from serving.registry import tables as t
from serving.registry.database import Database, iso, values
from serving.registry.labelling.votes import Vote

OFFERED = (ItemState.CONFLICT.value, ItemState.OPEN.value)  # states that wait for a label


class UnknownItem(KeyError):
    """The queue has no such item."""

    def __str__(self) -> str:
        return str(self.args[0])


class QueueClosed(RuntimeError):
    """The item takes no more labels: its round has its verdict, or it has expired."""


class BadQueueLabel(ValueError):
    """The label is refused; the message says why and what to do."""


class BadQueueRows(ValueError):
    """Some labels of a batch are refused, so none was stored. `errors` has a line for each, in order."""

    def __init__(self, errors: Sequence[tuple[int, str]]) -> None:
        super().__init__("; ".join(f"row {n}: {error}" for n, error in errors))
        self.errors = list(errors)


class QueueRows:
    """The rows of one model's queue, within open transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def select(self, *columns: Any) -> sa.Select[Any]:
        """Select columns of the model's items, all by default."""
        return sa.select(*(columns or (t.queue_items,))).where(self._database.mine(t.queue_items))

    def row(self, connection: sa.Connection, item_id: str) -> dict[str, Any]:
        """Return an item's row. Raises UnknownItem."""
        row = connection.execute(self.select().where(t.queue_items.c.item_id == item_id)).first()
        if row is None:
            raise UnknownItem(f"the queue has no item {item_id}: see `ratchet queue list`")
        return values(row)

    def votes(self, connection: sa.Connection, item_id: str) -> dict[str, Vote]:
        """Return an item's votes by reviewer."""
        mine = self._database.mine(t.queue_votes) & (t.queue_votes.c.item_id == item_id)
        rows = connection.execute(sa.select(t.queue_votes).where(mine))
        return {row.reviewer: Vote(row.label, bool(row.unsure)) for row in rows}

    def set(self, connection: sa.Connection, item_id: str, **fields: object) -> None:
        """Set columns of an item."""
        mine = self._database.mine(t.queue_items) & (t.queue_items.c.item_id == item_id)
        connection.execute(t.queue_items.update().where(mine).values(**fields))

    def unexpired(self) -> sa.ColumnElement[bool]:
        """Return the condition that an item has not expired."""
        return t.queue_items.c.expires_at.is_(None) | (t.queue_items.c.expires_at > self._database.now())


def new_row(item: NewItem, model_name: str, now: str) -> dict[str, object]:
    """Return the row of a new item. Its place in the queue and the order of its answers are drawn from its id."""
    item_id = new_id()
    drawn = hashlib.sha256(f"{model_name}\0{item_id}".encode()).digest()
    candidate_first = bool(drawn[-1] & 1)
    answers = (item.candidate_answer, item.champion_answer)
    first, second = answers if candidate_first else answers[::-1]
    return {
        "model_name": model_name,
        "item_id": item_id,
        "kind": item.kind,
        "round_id": item.round_id or "",
        "key": item.key,
        "task": item.task,
        "text": item.text,
        "metadata": json.dumps(item.metadata, ensure_ascii=False),
        "answer_1": first,
        "answer_2": second,
        "candidate_first": candidate_first,
        "draw": drawn.hex()[:32],
        "state": "open",
        "created_at": now,
        "expires_at": iso(item.expires_at) if item.expires_at else None,
    }


def as_item(row: Mapping[str, Any], labels: list[str], voters: int) -> QueueItem:
    """Return what a reviewer sees of a row; `labels` is the active taxonomy."""
    answers = tuple(a for a in (row["answer_1"], row["answer_2"]) if a is not None)
    until = row["leased_until"]
    return QueueItem(
        item_id=row["item_id"],
        kind=row["kind"],
        round_id=row["round_id"] or None,
        task=row["task"],
        text=row["text"],
        answers=answers,
        labels=tuple(labels) if row["task"] in LABELLED else (),
        metadata=json.loads(row["metadata"]),
        state=row["state"],
        label=row["label"],
        voters=voters,
        leased_to=row["leased_to"],
        leased_until=datetime.fromisoformat(until) if until else None,
    )


def as_decided(row: Mapping[str, Any]) -> DecidedItem:
    """Return a labelled row with its answers' authors."""
    answers = (row["answer_1"], row["answer_2"])
    candidate, champion = answers if row["candidate_first"] else answers[::-1]
    label = row["label"]
    if row["task"] == "generation" and champion is not None:
        label = {"1": row["answer_1"], "2": row["answer_2"]}.get(label, label)
    return DecidedItem(
        item_id=row["item_id"],
        kind=row["kind"],
        round_id=row["round_id"] or None,
        task=row["task"],
        key=row["key"],
        text=row["text"],
        metadata=json.loads(row["metadata"]),
        champion_answer=champion,
        candidate_answer=candidate,
        label=label,
        decided_at=datetime.fromisoformat(row["decided_at"]),
    )
