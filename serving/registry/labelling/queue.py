"""The labelling queue: texts that people label, blind, so that a round can be settled and the reference set can grow.

Turns items into leases, labels into votes, and votes into the label that counts. Rounds add items (labelling/items.py); the
command line and the console show and label them. What labels decide is in pipelines/gates/settling.py.

A reviewer never learns which model gave an answer, nor wins and losses before the round's verdict. Transactions are serialised
(database.py), so two people who ask at once get different items.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from schemas.labels import LabelMap
from schemas.queue import (
    ItemKind,
    ItemState,
    LabelResult,
    QueueItem,
    QueueProgress,
)
from schemas.records import RoundState
from schemas.targets import BadTarget, Task, from_cell
from serving.registry import tables as t
from serving.registry.database import Database, iso, values
from serving.registry.labelling.rows import (
    OFFERED,
    BadQueueLabel,
    BadQueueRows,
    QueueClosed,
    QueueRows,
    UnknownItem,
    as_item,
)
from serving.registry.labelling.votes import Vote, decide, outcome
from serving.registry.labels import Labels
from serving.registry.rounds import Rounds

__all__ = ["BadQueueLabel", "BadQueueRows", "Queue", "QueueClosed", "UnknownItem"]

LEASE_MINUTES = 10.0
CHOICES = ("1", "2", "tie")  # labels of a generation disagreement: which text is better


class Queue:
    """The queue of one model."""

    def __init__(self, database: Database, rounds: Rounds, labels: Labels) -> None:
        self._database = database
        self._rounds = rounds
        self._labels = labels
        self._rows = QueueRows(database)

    def next(
        self, reviewer: str, *, kind: ItemKind | None = None, lease_minutes: float = LEASE_MINUTES
    ) -> QueueItem | None:
        """Lease an item to a reviewer and return it; None if none waits for them.

        The item that the reviewer holds comes first, then conflicts, then the items of settling rounds, then the audit sample, in
        random order each. Items that the reviewer labelled or skipped, or that another person holds, are left out.
        """
        reviewer = _reviewer(reviewer)
        with self._database.write() as connection:
            row = connection.execute(self._offered(connection, reviewer, kind).limit(1)).first()
            if row is None:
                return None
            until = iso(self._database.clock() + timedelta(minutes=lease_minutes))
            self._rows.set(connection, row.item_id, leased_to=reviewer, leased_until=until)
            return self._items(connection, [{**values(row), "leased_to": reviewer, "leased_until": until}])[0]

    def label(self, item_id: str, label: object, *, reviewer: str) -> LabelResult:
        """Store a reviewer's label and return what it did. The same reviewer's earlier label is replaced.

        Args:
            item_id: of an item.
            label: a label, list of labels, number or text, or a file's cell of it; for a disagreement of generated texts, the
                better answer: "1", "2" or "tie".
            reviewer: who labels.

        Raises:
            UnknownItem: no such item.
            QueueClosed: its round has its verdict, or the item has expired.
            BadQueueLabel: the label is no target of the task, or not in the taxonomy.

        """
        reviewer = _reviewer(reviewer)
        with self._database.write() as connection:
            return self._label(connection, item_id, label, reviewer)

    def label_all(self, labels: Sequence[tuple[str, object]], *, reviewer: str) -> list[LabelResult]:
        """Store labels by item id: all of them, or none. Raises BadQueueRows, which numbers rows from 1."""
        reviewer = _reviewer(reviewer)
        results, errors, first = list[LabelResult](), list[tuple[int, str]](), dict[str, int]()
        with self._database.write() as connection:
            for n, (item_id, label) in enumerate(labels, 1):
                if item_id in first:
                    errors.append((n, f"item {item_id} is in row {first[item_id]} already: keep one of the two"))
                    continue
                first[item_id] = n
                try:
                    results.append(self._label(connection, item_id, label, reviewer))
                except (UnknownItem, QueueClosed, BadQueueLabel) as error:
                    errors.append((n, str(error)))
            if errors:
                raise BadQueueRows(errors)
        return results

    def skip(self, item_id: str, *, reviewer: str, unsure: bool = False) -> ItemState:
        """Pass an item on to others; `unsure`: nobody could tell from the text. Return the item's state.

        A label that the reviewer gave before is withdrawn. Raises UnknownItem, QueueClosed.
        """
        reviewer = _reviewer(reviewer)
        with self._database.write() as connection:
            row = self._open(connection, item_id)
            votes = self._rows.votes(connection, item_id) | {reviewer: Vote(None, unsure)}
            return self._store(connection, row, reviewer, votes)[0]

    def progress(self, round_id: str | None = None) -> QueueProgress:
        """Return how far a round's labels are; None: those of the audit sample. Raises UnknownRound."""
        mine = self._database.mine(t.queue_items) & (t.queue_items.c.round_id == (round_id or ""))
        query = sa.select(t.queue_items.c.state, sa.func.count()).where(mine).group_by(t.queue_items.c.state)
        with self._database.read() as connection:
            record = self._rounds.read_round(connection, round_id) if round_id else None
            counts = Counter({ItemState(state): n for state, n in connection.execute(query)})
        plan = record.settling if record else None
        return QueueProgress(
            round_id=round_id,
            state=record.state.value if record else "audit sample",
            labels=counts[ItemState.LABELLED],
            about=plan.about if plan else None,
            open=counts[ItemState.OPEN],
            conflicts=counts[ItemState.CONFLICT],
            disputed=counts[ItemState.DISPUTED],
            unclear=counts[ItemState.UNCLEAR],
            wins=plan.wins if plan else None,
            losses=plan.losses if plan else None,
        )

    def item(self, item_id: str) -> QueueItem:
        """Return one item. Raises UnknownItem."""
        with self._database.read() as connection:
            return self._items(connection, [self._rows.row(connection, item_id)])[0]

    def items(
        self,
        *,
        kind: ItemKind | None = None,
        round_id: str | None = None,
        states: Iterable[ItemState] | None = None,
        limit: int | None = None,
    ) -> list[QueueItem]:
        """Return items in the queue's order, filtered by kind, round and state; those of ended rounds too."""
        query = self._rows.select().order_by(t.queue_items.c.kind.desc(), t.queue_items.c.draw)
        if kind is not None:
            query = query.where(t.queue_items.c.kind == kind)
        if round_id is not None:
            query = query.where(t.queue_items.c.round_id == round_id)
        if states is not None:
            query = query.where(t.queue_items.c.state.in_([state.value for state in states]))
        with self._database.read() as connection:
            return self._items(connection, [values(row) for row in connection.execute(query.limit(limit))])

    def _label(self, connection: sa.Connection, item_id: str, label: object, reviewer: str) -> LabelResult:
        row = self._open(connection, item_id)
        target = self._target(connection, row, label)
        before = self._rows.votes(connection, item_id)
        votes = {**before, reviewer: Vote(target)}
        state, decided = self._store(connection, row, reviewer, votes)
        did = outcome(before, reviewer, target, ItemState(row["state"]), state)
        return LabelResult(item_id=item_id, outcome=did, state=state, label=decided)

    def _store(
        self, connection: sa.Connection, row: dict[str, Any], reviewer: str, votes: dict[str, Vote]
    ) -> tuple[ItemState, str | None]:
        """Store the reviewer's vote, and the state and label that all votes give."""
        state, label = decide(votes)
        mine, now = votes[reviewer], self._database.now()
        key = {"model_name": self._database.model_name, "item_id": row["item_id"], "reviewer": reviewer}
        vote = {**key, "label": mine.label, "unsure": mine.unsure, "voted_at": now}
        self._database.upsert(connection, t.queue_votes, vote)
        decided_at = None if label is None else row["decided_at"] if label == row["label"] else now
        change = {"state": state.value, "label": label, "decided_at": decided_at}
        self._rows.set(connection, row["item_id"], **change, leased_to=None, leased_until=None)
        return state, label

    def _open(self, connection: sa.Connection, item_id: str) -> dict[str, Any]:
        """Return an item that takes labels. Raises UnknownItem, QueueClosed."""
        row = self._rows.row(connection, item_id)
        if row["round_id"]:
            record = self._rounds.read_round(connection, row["round_id"])
            if record.state is not RoundState.SETTLING:
                raise QueueClosed(
                    f"item {item_id}: round {record.round_id} is {record.state} and takes no more labels; "
                    "`ratchet queue next` gives another item"
                )
        if row["expires_at"] and row["expires_at"] <= self._database.now():
            raise QueueClosed(
                f"item {item_id} expired at {row['expires_at'][:16]}Z, and feedback on its text may train since; "
                "`ratchet queue next` gives another item"
            )
        return row

    def _target(self, connection: sa.Connection, row: dict[str, Any], label: object) -> str:
        """Return a label as a canonical target with current names. Raises BadQueueLabel."""
        task: Task = row["task"]
        if task == "generation" and row["answer_1"] is not None:
            choice = str(label).strip().lower()
            if choice not in CHOICES:
                raise BadQueueLabel(f"item {row['item_id']}: label {label!r}: choose the better text with 1, 2 or tie")
            return choice
        try:
            return LabelMap(self._labels.read_labels(connection)).checked(task, from_cell(task, label))
        except BadTarget as error:
            raise BadQueueLabel(f"item {row['item_id']}: label {error}") from None

    def _offered(self, connection: sa.Connection, reviewer: str, kind: ItemKind | None) -> sa.Select[Any]:
        """Select the items that may be leased to a reviewer, the first to offer first."""
        items, votes, now = t.queue_items.c, t.queue_votes, self._database.now()
        voted = sa.select(votes.c.item_id).where(self._database.mine(votes), votes.c.reviewer == reviewer)
        mine = (items.leased_to == reviewer) & (items.leased_until > now)
        free = items.leased_until.is_(None) | (items.leased_until <= now) | mine
        rounds = [record.round_id for record in self._rounds.read_settling(connection)]
        query = self._rows.select().where(
            items.state.in_(OFFERED),
            items.item_id.not_in(voted),
            free,
            items.round_id.in_(["", *rounds]),
            self._rows.unexpired(),
        )
        if kind is not None:
            query = query.where(items.kind == kind)
        return query.order_by(sa.case((mine, 0), else_=1), items.state, items.kind.desc(), items.draw)

    def _items(self, connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> list[QueueItem]:
        active = [label.name for label in self._labels.read_labels(connection) if label.state == "active"]
        labelled = self._database.mine(t.queue_votes) & t.queue_votes.c.label.is_not(None)
        query = (
            sa.select(t.queue_votes.c.item_id, sa.func.count().label("n"))
            .where(labelled)
            .group_by(t.queue_votes.c.item_id)
        )
        voters = {row.item_id: int(row.n) for row in connection.execute(query)} if rows else {}
        return [as_item(row, active, voters.get(row["item_id"], 0)) for row in rows]


def _reviewer(name: str) -> str:
    """Return a reviewer's name without white space around it. Raises BadQueueLabel if nothing is left."""
    if not (given := name.strip()):
        raise BadQueueLabel("a label needs the name of its reviewer, got an empty one")
    return given
