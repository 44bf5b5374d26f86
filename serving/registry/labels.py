"""The label taxonomy: the labels of a model in order, each active, retired or merged into another.

Turns names into ordered labels. The command line changes them; serving, the feedback consumer and rounds read them.
"""

from collections.abc import Iterable

import sqlalchemy as sa

from schemas.labels import LabelMap
from schemas.records import Label
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.database import Database, values

MIN_LABELS = 2  # a model of one label decides nothing


class BadLabel(ValueError):
    """The requested change of the taxonomy is refused; the message says why and what to do."""


class Labels:
    """The labels of one model."""

    def __init__(self, database: Database, audit_log: AuditLog) -> None:
        self._database = database
        self._audit_log = audit_log

    def labels(self) -> list[Label]:
        """Return all labels, in the order in which they were added."""
        with self._database.read() as connection:
            return self.read_labels(connection)

    def label_map(self) -> LabelMap:
        """Return the map from every label name, old ones too, to the label that it means now."""
        return LabelMap(self.labels())

    def active_labels(self) -> list[str]:
        """Return the names of the active labels, in the order in which they were added."""
        return [label.name for label in self.labels() if label.state == "active"]

    def set_labels(self, names: Iterable[str]) -> None:
        """Add the missing labels, as active; existing ones, retired ones too, stay as they are."""
        with self._database.write() as connection:
            self._add(connection, names)

    def take_up_labels(self, names: Iterable[str], *, actor: str) -> tuple[list[str], list[str]]:
        """Make labels active, audited; return the names that were added and those that became active again."""
        with self._database.write() as connection:
            known = {label.name: label for label in self.read_labels(connection)}
            wanted = list(dict.fromkeys(names))
            added = [name for name in wanted if name not in known]
            again = [name for name in wanted if name in known and known[name].state != "active"]
            self._add(connection, added)
            for name in again:
                self._change(connection, name, "active", None)
            if added or again:
                self._audit_log.append(connection, actor, "labels add", {"names": added, "again": again})
            return added, again

    def retire_label(self, name: str, *, actor: str, reason: str = "") -> None:
        """Retire a label: no model trains on it and no feedback may name it. Raises BadLabel."""
        with self._database.write() as connection:
            self._require_active(connection, name)
            self._require_spare(connection)
            self._change(connection, name, "retired", None)
            self._audit_log.append(connection, actor, "labels retire", {"name": name, "reason": reason})

    def rename_label(self, name: str, to: str, *, actor: str, reason: str = "") -> None:
        """Rename a label; the old name stays an alias. Raises BadLabel if `to` is an active or retired label."""
        with self._database.write() as connection:
            known = self._require_active(connection, name)
            if to in known and known[to].state != "merged":
                raise BadLabel(
                    f"label {to!r} exists and is {known[to].state}: use `ratchet labels merge` to join the two"
                )
            self._add(connection, [to])
            self._change(connection, to, "active", None)
            self._change(connection, name, "merged", to)
            self._audit_log.append(connection, actor, "labels rename", {"name": name, "to": to, "reason": reason})

    def merge_labels(self, name: str, into: str, *, actor: str, reason: str = "") -> None:
        """Merge two labels: `name` means `into` from now on. Raises BadLabel."""
        with self._database.write() as connection:
            if name == into:
                raise BadLabel(f"label {name!r} cannot be merged into itself: name two labels")
            self._require_active(connection, name)
            self._require_active(connection, into)
            self._require_spare(connection)
            self._change(connection, name, "merged", into)
            self._audit_log.append(connection, actor, "labels merge", {"name": name, "into": into, "reason": reason})

    def read_labels(self, connection: sa.Connection) -> list[Label]:
        """Return all labels within an open transaction, in the order in which they were added."""
        query = sa.select(t.labels).where(self._database.mine(t.labels)).order_by(t.labels.c.place)
        return [Label.model_validate(values(row)) for row in connection.execute(query)]

    def _add(self, connection: sa.Connection, names: Iterable[str]) -> None:
        known = {label.name for label in self.read_labels(connection)}
        missing = [name for name in dict.fromkeys(names) if name not in known]
        start = self._database.next_number(connection, t.labels, "place")
        rows = [
            {"model_name": self._database.model_name, "name": name, "place": position, "state": "active"}
            for position, name in enumerate(missing, start)
        ]
        if rows:
            connection.execute(t.labels.insert(), rows)

    def _require_active(self, connection: sa.Connection, name: str) -> dict[str, Label]:
        """Return all labels by name. Raises BadLabel unless `name` is active."""
        known = {label.name: label for label in self.read_labels(connection)}
        if name not in known:
            raise BadLabel(f"label {name!r} does not exist: see `ratchet labels list`")
        if known[name].state != "active":
            label = known[name]
            state = f"merged into {label.merged_into!r}" if label.state == "merged" else "retired"
            raise BadLabel(f"label {name!r} is {state} already: `ratchet labels add` makes it active again")
        return known

    def _require_spare(self, connection: sa.Connection) -> None:
        """Raise BadLabel if the model needs all of its active labels."""
        active = sum(label.state == "active" for label in self.read_labels(connection))
        if active <= MIN_LABELS:
            raise BadLabel(f"the model has {active} active labels and needs at least {MIN_LABELS}: add another first")

    def _change(self, connection: sa.Connection, name: str, state: str, merged_into: str | None) -> None:
        mine = sa.and_(self._database.mine(t.labels), t.labels.c.name == name)
        connection.execute(t.labels.update().where(mine).values(state=state, merged_into=merged_into))
