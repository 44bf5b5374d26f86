"""A project's taxonomy as one value: which labels are in use, and what other names mean now.

Turns the registry's `Label` rows into answers: the present name of a label, and why a name is no label. Serving, the feedback
consumer, dataset builds and gates read it; the registry changes it. It deliberately knows no files and no feedback.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

from schemas.records import Label
from schemas.targets import LABELLED, BadTarget, Task, canonical, labels_of


class LabelMap:
    """The labels of one moment.

    A label is active, retired, or merged into another one (a rename is a merge into a name that was not in use). A merged name
    goes on to mean the label that it was merged into: old files and old feedback stay readable.
    """

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        self._labels = {label.name: label for label in labels}

    @classmethod
    def of(cls, names: Iterable[str]) -> "LabelMap":
        """Return a taxonomy whose labels are all active."""
        return cls(Label(name=name) for name in names)

    @cached_property
    def active(self) -> list[str]:
        """Names in use, in the order of their making."""
        return [name for name, label in self._labels.items() if label.state == "active"]

    def current(self, name: str) -> str:
        """Return what a label is called now; a name that is no label comes back as it is."""
        seen = {name}
        while (label := self._labels.get(name)) and label.merged_into and label.merged_into not in seen:
            name = label.merged_into
            seen.add(name)
        return name

    def outputs(self, labels: Sequence[str]) -> list[str]:
        """Return a head's labels by their present names; where it has both of two that were merged, one keeps its old name."""
        found: list[str] = []
        for name in labels:
            current = self.current(name)
            taken = current != name and (current in labels or current in found)
            found.append(name if taken else current)
        return found

    def is_active(self, name: str) -> bool:
        """Whether a name means a label in use."""
        label = self._labels.get(self.current(name))
        return label is not None and label.state == "active"

    def refusal(self, name: str) -> str | None:
        """Return why feedback can't name this label and what to do, or None if it can."""
        if self.is_active(name):
            return None
        current, shown = self.current(name), _short(name)
        if current in self._labels:
            return f"{shown} is a retired label; use another, or take it up again with `ratchet labels add`"
        return f"not in the taxonomy: {shown}; add it with `ratchet labels add`, or use one of its labels"

    def target(self, task: Task, target: str) -> str:
        """Return a canonical target with its labels' present names; of several labels, without the retired ones."""
        if task not in LABELLED:
            return target
        names = [self.current(name) for name in labels_of(task, target)]
        if task == "classification":
            return names[0]
        return canonical(task, [name for name in names if name not in self._labels or self.is_active(name)])

    def checked(self, task: Task, target: str) -> str:
        """Return a canonical target with its labels' present names. Raises BadTarget where one of them is not in use."""
        if task not in LABELLED:
            return target
        names = labels_of(task, target)
        if refusals := [why for name in names if (why := self.refusal(name))]:
            raise BadTarget("; ".join(refusals[:5]))
        found = [self.current(name) for name in names]
        return found[0] if task == "classification" else canonical(task, found)


def _short(name: str) -> str:
    shown = repr(name)
    return shown if len(shown) <= 100 else f"{shown[:48]} ... {shown[-48:]}"
