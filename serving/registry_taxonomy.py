"""The label taxonomy and the split ledger: which labels there are, and on which side an example stays.

Turns names into ordered labels, and wanted sides into the sides in force. The command line, serving and rounds use it. It
deliberately does not know how an example's cluster or side is chosen.
"""

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from schemas.artifacts import Label
from serving import registry_tables as t
from serving.registry_database import Database, values

KEYS_PER_QUERY = 500  # below every database's limit of parameters


class Taxonomy(Database):
    """Labels and sides of one model."""

    def labels(self) -> list[Label]:
        """The taxonomy, in the order of its making."""
        with self._read() as connection:
            return self._labels(connection)

    def active_labels(self) -> list[str]:
        """Names of the labels in use, in the order of their making."""
        return [label.name for label in self.labels() if label.state == "active"]

    def set_labels(self, names: Iterable[str]) -> None:
        """Add the labels that are missing, as active; those that exist, retired ones too, stay as they are."""
        with self._write() as connection:
            known = {label.name for label in self._labels(connection)}
            missing = [name for name in dict.fromkeys(names) if name not in known]
            start = self._next(connection, t.labels, "place")
            rows = [
                {"model_name": self.model_name, "name": name, "place": place, "state": "active"}
                for place, name in enumerate(missing, start)
            ]
            if rows:
                connection.execute(t.labels.insert(), rows)

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

    def _sides(self, connection: sa.Connection, keys: Iterable[str]) -> dict[str, str]:
        wanted, found = list(keys), dict[str, str]()
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            some = t.sides.c.cluster.in_(wanted[start : start + KEYS_PER_QUERY])
            query = sa.select(t.sides.c.cluster, t.sides.c.side).where(self._mine(t.sides), some)
            found |= {row.cluster: row.side for row in connection.execute(query)}
        return found
