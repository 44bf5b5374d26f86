"""The taxonomy of a project as one value: its active labels, and the current names of merged ones.

Turns the registry's `Label` rows into a map from any label name to its current name, or to the reason why it is refused.
Serving, the feedback consumer, dataset builds and gates use it; the registry changes it.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

from schemas.records import Label
from schemas.targets import LABELLED, BadTarget, Task, canonical, labels_of


class LabelMap:
    """A snapshot of the taxonomy.

    A label is active, retired, or merged into another one. A rename is a merge into a new name. A merged name resolves to
    the label that it was merged into, so old files and old feedback stay readable.
    """

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        self._labels = {label.name: label for label in labels}

    @classmethod
    def of(cls, names: Iterable[str]) -> "LabelMap":
        """Return a taxonomy whose labels are all active."""
        return cls(Label(name=name) for name in names)

    @cached_property
    def active(self) -> list[str]:
        """Return the active names in the order of their creation."""
        return [name for name, label in self._labels.items() if label.state == "active"]

    def current(self, name: str) -> str:
        """Return a label's current name; an unknown name is returned unchanged."""
        seen = {name}
        while (label := self._labels.get(name)) and label.merged_into and label.merged_into not in seen:
            name = label.merged_into
            seen.add(name)
        return name

    def outputs(self, labels: Sequence[str]) -> list[str]:
        """Return a head's labels under their current names. If it has both of two merged labels, one keeps its old name."""
        names: list[str] = []
        for name in labels:
            current = self.current(name)
            taken = current != name and (current in labels or current in names)
            names.append(name if taken else current)
        return names

    def is_active(self, name: str) -> bool:
        """Return whether a name resolves to an active label."""
        label = self._labels.get(self.current(name))
        return label is not None and label.state == "active"

    def refusal(self, name: str) -> str | None:
        """Return why feedback may not name this label and what to do, or None if it may."""
        if self.is_active(name):
            return None
        current, shown = self.current(name), _short(name)
        if current in self._labels:
            return f"{shown} is a retired label; use another, or activate it again with `ratchet labels add`"
        return f"not in the taxonomy: {shown}; add it with `ratchet labels add`, or use one of its labels"

    def target(self, task: Task, target: str) -> str:
        """Return a canonical target with current label names; multilabel targets lose retired labels."""
        if task not in LABELLED:
            return target
        names = [self.current(name) for name in labels_of(task, target)]
        if task == "classification":
            return names[0]
        return canonical(task, [name for name in names if name not in self._labels or self.is_active(name)])

    def checked(self, task: Task, target: str) -> str:
        """Return a canonical target with current label names. Raises BadTarget if one of them is not active."""
        if task not in LABELLED:
            return target
        names = labels_of(task, target)
        if refusals := [why for name in names if (why := self.refusal(name))]:
            raise BadTarget("; ".join(refusals[:5]))
        current = [self.current(name) for name in names]
        return current[0] if task == "classification" else canonical(task, current)


def _short(name: str) -> str:
    shown = repr(name)
    return shown if len(shown) <= 100 else f"{shown[:48]} ... {shown[-48:]}"
