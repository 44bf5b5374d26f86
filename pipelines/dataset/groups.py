"""Groups: a round's texts clustered together with what judges, and what the ledger knows of them.

Turns curated rows and examples into one row a cluster. build.py makes one `Groups` a round. It deliberately decides no side.

Order of precedence: the reference and the audit sample, which lead or not but let nothing like them train; then what the
ledger knows, so that who led once leads again; then rows of files, then people's. A row that is near two leaders speaks for
neither: if they lie on two sides it is a bridge, and left out in any case.

The audit sample is a side like any other: a text joins it when it is first seen, or never. What has trained does not become
evidence because the same words were drawn later, and what was drawn does not train once the feedback that drew it is gone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipelines.dataset.aggregate import aggregate
from pipelines.dataset.deduplicate import cluster
from pipelines.dataset.examples import FROM_FILES, Drops, Example
from schemas.targets import Task

JUDGING, AUDIT = ("calibration", "test"), "audit"
IN_REFERENCE, IN_AUDIT, BRIDGE, DUPLICATE = "in the reference", "in the audit sample", "bridge", "duplicate"


class Groups:
    """One round's clusters.

    Args:
        curated: rows of the reference, tidy.
        examples: all other rows, tidy.
        key_of: text -> its key in the ledger.
        sides: keys -> the sides in force, of those that have one.
        task: by which votes are counted.

    """

    def __init__(
        self,
        curated: Sequence[Example],
        examples: Sequence[Example],
        key_of: Callable[[str], str],
        sides: Callable[[Iterable[str]], dict[str, str]],
        task: Task,
    ) -> None:
        self._task = task
        self._reference = _by_text(curated)
        given = _by_text(examples)
        self.key = {text: key_of(text) for text in (*self._reference, *given)}
        self.known = sides(set(self.key.values()))
        self._audit = {
            text: [e for e in rows if e.audit]
            for text, rows in given.items()
            if text not in self._reference and self._is_audit(text, rows)
        }
        self._others = _by_text(e for e in examples if not e.audit or e.text not in self._audit)
        anchors = [*self._in_order(self._reference), *self._in_order(self._audit)]
        rest = [
            text for text in self._in_order(self._others) if text not in self._reference and text not in self._audit
        ]
        self._anchors = len(anchors)
        self._texts = [*anchors, *rest]
        found = cluster(self._texts, self._anchors)
        self._leads = [leader == n for n, leader in enumerate(found.leader)]
        self._near = found.near
        self._between: list[tuple[int, list[int]]] = []

    def reference(self, drops: Drops) -> list[Example]:
        """One curated row a cluster, with the label of most."""
        return self._judging(range(len(self._reference)), self._reference, drops)

    def audit(self, drops: Drops) -> list[Example]:
        """One row of the audit sample a cluster that is not in the reference; it says what a text is, not what it isn't."""
        found = self._judging(range(len(self._reference), self._anchors), self._audit, drops)
        return drops.keep(found, lambda e: not e.rejects, "rejection: does not judge")

    def merge(self, drops: Drops) -> list[Example]:
        """One example a cluster of the rows that may train or be held out, with the votes of all."""
        for text in self._others:
            if text in self._reference or text in self._audit:
                reason = IN_REFERENCE if text in self._reference else IN_AUDIT
                drops.add(reason, text, len(self._others[text]))
        members: dict[int, list[Example]] = {}
        for n in range(self._anchors, len(self._texts)):
            rows = self._others[self._texts[n]]
            if self._leads[n]:
                members[n] = list(rows)
                continue
            leader, reason = self._belongs(n)
            if leader is None:
                if reason:
                    drops.add(reason, self._texts[n], len(rows))
                continue
            members[leader] = members[leader] + rows
        merged = []
        for n, given in members.items():
            rows = given
            if self.known.get(self.key[self._texts[n]]) in JUDGING:
                rows = drops.keep(given, lambda e: e.source in FROM_FILES, IN_REFERENCE)  # people do not judge
            example = aggregate(self._texts[n], rows, drops, self._task) if rows else None
            if example is not None:
                merged.append(example)
        return merged

    def drop_between(self, sides: Mapping[str, str], drops: Drops) -> None:
        """Count the rows that stand between clusters, once the sides of these are known."""
        for n, near in self._between:
            found = {sides.get(self.key[self._texts[leader]]) for leader in near} - {None}
            drops.add(BRIDGE if len(found) > 1 else DUPLICATE, self._texts[n], len(self._others[self._texts[n]]))

    def _belongs(self, n: int) -> tuple[int | None, str]:
        """The one leader of a text, or why it has none; without a reason it is between clusters."""
        near = self._near[n]
        if near[0] < self._anchors:
            return None, IN_REFERENCE if near[0] < len(self._reference) else IN_AUDIT
        if len(near) > 1:
            self._between.append((n, near))
            return None, ""
        own, other = (self.known.get(self.key[self._texts[m]]) for m in (n, near[0]))
        return (None, BRIDGE) if own is not None and own != other else (near[0], "")

    def _is_audit(self, text: str, rows: Sequence[Example]) -> bool:
        known = self.known.get(self.key[text])
        return any(e.audit for e in rows) if known is None else known == AUDIT

    def _judging(self, numbers: Iterable[int], rows: Mapping[str, list[Example]], drops: Drops) -> list[Example]:
        members: dict[int, list[Example]] = {n: list(rows[self._texts[n]]) for n in numbers if self._leads[n]}
        for n in numbers:
            if not self._leads[n] and rows[self._texts[n]]:
                leaders = [m for m in self._near[n] if m in members]
                if len(leaders) == 1:
                    members[leaders[0]] += rows[self._texts[n]]
                else:
                    drops.add(DUPLICATE if leaders else IN_REFERENCE, self._texts[n], len(rows[self._texts[n]]))
        found = (aggregate(self._texts[n], group, drops, self._task) for n, group in members.items() if group)
        return [e for e in found if e is not None]

    def _in_order(self, rows: Mapping[str, list[Example]]) -> list[str]:
        def precedence(text: str) -> tuple[bool, str, bool, str]:
            known = self.key[text] in self.known
            people = not known and not any(e.source in FROM_FILES for e in rows[text])
            return not known, self.key[text] if known else "", people, text

        return sorted(rows, key=precedence)


def _by_text(rows: Iterable[Example]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        found[row.text].append(row)
    return dict(found)
