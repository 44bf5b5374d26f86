"""The label taxonomy and the split ledger: which labels there are, and on which side an example stays.

Turns names into ordered labels, and wanted sides into the sides in force. The command line, serving and rounds use it. It
deliberately does not know how an example's cluster or side is chosen.
"""

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from schemas.labels import LabelMap
from schemas.records import Label
from serving.registry import tables as t
from serving.registry.audit import AuditLog
from serving.registry.database import values

KEYS_PER_QUERY = 500  # below every database's limit of parameters
FEWEST = 2  # labels that a model can tell apart


class BadLabel(ValueError):
    """The taxonomy can't be changed so; the message says why and what to do."""


class Taxonomy(AuditLog):
    """Labels and sides of one model."""

    def labels(self) -> list[Label]:
        """The taxonomy, in the order of its making."""
        with self._read() as connection:
            return self._labels(connection)

    def label_map(self) -> LabelMap:
        """The taxonomy as one value that answers what a name means now."""
        return LabelMap(self.labels())

    def active_labels(self) -> list[str]:
        """Names of the labels in use, in the order of their making."""
        return [label.name for label in self.labels() if label.state == "active"]

    def set_labels(self, names: Iterable[str]) -> None:
        """Add the labels that are missing, as active; those that exist, retired ones too, stay as they are."""
        with self._write() as connection:
            self._add(connection, names)

    def take_up_labels(self, names: Iterable[str], *, actor: str) -> tuple[list[str], list[str]]:
        """Make these labels active, in one transaction with the audit log: (those that are added, those taken up again)."""
        with self._write() as connection:
            known = {label.name: label for label in self._labels(connection)}
            wanted = list(dict.fromkeys(names))
            added = [name for name in wanted if name not in known]
            again = [name for name in wanted if name in known and known[name].state != "active"]
            self._add(connection, added)
            for name in again:
                self._change(connection, name, "active", None)
            if added or again:
                self._audit(connection, actor, "labels add", {"names": added, "again": again})
            return added, again

    def retire_label(self, name: str, *, actor: str, reason: str = "") -> None:
        """Take a label out of use: it neither trains nor is accepted as feedback. Raises BadLabel."""
        with self._write() as connection:
            self._in_use(connection, name)
            self._keep_enough(connection)
            self._change(connection, name, "retired", None)
            self._audit(connection, actor, "labels retire", {"name": name, "reason": reason})

    def rename_label(self, name: str, to: str, *, actor: str, reason: str = "") -> None:
        """Give a label another name; the old one goes on to mean it. Raises BadLabel if `to` is a label in use or retired."""
        with self._write() as connection:
            known = self._in_use(connection, name)
            if to in known and known[to].state != "merged":
                state = "in use" if known[to].state == "active" else "a retired label"
                raise BadLabel(f"{to!r} is {state}: `ratchet labels merge` makes one label of two")
            self._add(connection, [to])
            self._change(connection, to, "active", None)
            self._change(connection, name, "merged", to)
            self._audit(connection, actor, "labels rename", {"name": name, "to": to, "reason": reason})

    def merge_labels(self, name: str, into: str, *, actor: str, reason: str = "") -> None:
        """Make one label of two: what is called `name` is `into` from now on. Raises BadLabel."""
        with self._write() as connection:
            if name == into:
                raise BadLabel(f"{name!r} can't be merged into itself")
            self._in_use(connection, name)
            self._in_use(connection, into)
            self._keep_enough(connection)
            self._change(connection, name, "merged", into)
            self._audit(connection, actor, "labels merge", {"name": name, "into": into, "reason": reason})

    def sides(self, keys: Iterable[str]) -> dict[str, str]:
        """The sides in force of those `keys` that have one."""
        with self._read() as connection:
            return self._sides(connection, keys)

    def record_sides(self, sides: Mapping[str, str]) -> dict[str, str]:
        """Write key -> side where there is none yet, and return the sides in force: the first writer wins."""
        with self._write() as connection:
            known = self._sides(connection, sides)
            rows = [
                {"model_name": self.model_name, "cluster": key, "side": side}
                for key, side in sides.items()
                if key not in known
            ]
            if rows:
                connection.execute(t.sides.insert(), rows)
            return {key: known.get(key, side) for key, side in sides.items()}

    def _labels(self, connection: sa.Connection) -> list[Label]:
        query = sa.select(t.labels).where(self._mine(t.labels)).order_by(t.labels.c.place)
        return [Label.model_validate(values(row)) for row in connection.execute(query)]

    def _add(self, connection: sa.Connection, names: Iterable[str]) -> None:
        known = {label.name for label in self._labels(connection)}
        missing = [name for name in dict.fromkeys(names) if name not in known]
        start = self._next(connection, t.labels, "place")
        rows = [
            {"model_name": self.model_name, "name": name, "place": place, "state": "active"}
            for place, name in enumerate(missing, start)
        ]
        if rows:
            connection.execute(t.labels.insert(), rows)

    def _in_use(self, connection: sa.Connection, name: str) -> dict[str, Label]:
        """All labels by name, `name` among those in use."""
        known = {label.name: label for label in self._labels(connection)}
        if name not in known:
            raise BadLabel(f"{name!r} is not in the taxonomy: see `ratchet labels list`")
        if known[name].state != "active":
            label = known[name]
            now = f"merged into {label.merged_into!r}" if label.state == "merged" else "retired"
            raise BadLabel(f"{name!r} is {now} already: `ratchet labels add` makes it a label of its own again")
        return known

    def _keep_enough(self, connection: sa.Connection) -> None:
        active = sum(label.state == "active" for label in self._labels(connection))
        if active <= FEWEST:
            raise BadLabel(f"{active} labels are in use and a model needs {FEWEST}: add another first")

    def _change(self, connection: sa.Connection, name: str, state: str, merged_into: str | None) -> None:
        mine = sa.and_(self._mine(t.labels), t.labels.c.name == name)
        connection.execute(t.labels.update().where(mine).values(state=state, merged_into=merged_into))

    def _sides(self, connection: sa.Connection, keys: Iterable[str]) -> dict[str, str]:
        wanted, found = list(keys), dict[str, str]()
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            some = t.sides.c.cluster.in_(wanted[start : start + KEYS_PER_QUERY])
            query = sa.select(t.sides.c.cluster, t.sides.c.side).where(self._mine(t.sides), some)
            found |= {row.cluster: row.side for row in connection.execute(query)}
        return found
