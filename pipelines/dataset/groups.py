"""Cluster a round's texts together with the reference and the audit sample, and merge each cluster to one row.

Precedence: the reference and the audit sample, whose near-duplicates never train; then texts that the split ledger has, so
that a leader of an earlier round leads again; then rows of files; then people's rows. A row near two leaders is dropped. If
they are on different sides it is a "bridge", else a "duplicate".

A text joins the audit sample when it is first seen, or never. A text that has trained does not become evidence when it is
sampled later. A sampled text does not train after the feedback that sampled it is withdrawn.

build.py makes one `Groups` a round, and assigns the sides.
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
    """The clusters of one round.

    Attributes:
        key: text -> its key in the split ledger.
        known: key -> side, for keys that the ledger has.

    Args:
        curated: normalised rows of the reference.
        examples: all other rows, normalised.
        key_of: text -> its key in the ledger.
        sides: keys -> side of each key that has one.
        task: decides the voting rule.

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
        clusters = cluster(self._texts, self._anchors)
        self._leads = [leader == n for n, leader in enumerate(clusters.leader)]
        self._near = clusters.near
        self._between: list[tuple[int, list[int]]] = []

    def reference(self, drops: Drops) -> list[Example]:
        """Return one reference row a cluster, with the elected label."""
        return self._judging(range(len(self._reference)), self._reference, drops)

    def audit(self, drops: Drops) -> list[Example]:
        """Return one audit row a cluster that is not in the reference, without rejections."""
        rows = self._judging(range(len(self._reference), self._anchors), self._audit, drops)
        return drops.keep(rows, lambda e: not e.rejects, "rejection: does not judge")

    def merge(self, drops: Drops) -> list[Example]:
        """Return one example a cluster of the rows that may train or be held out, elected by all its members."""
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
                # feedback never enters the reference set
                rows = drops.keep(given, lambda e: e.source in FROM_FILES, IN_REFERENCE)
            example = aggregate(self._texts[n], rows, drops, self._task) if rows else None
            if example is not None:
                merged.append(example)
        return merged

    def drop_between(self, sides: Mapping[str, str], drops: Drops) -> None:
        """Count the rows near several leaders as bridges or duplicates; `sides` has the side of every leader."""
        for n, near in self._between:
            touched = {sides.get(self.key[self._texts[leader]]) for leader in near} - {None}
            drops.add(BRIDGE if len(touched) > 1 else DUPLICATE, self._texts[n], len(self._others[self._texts[n]]))

    def _belongs(self, n: int) -> tuple[int | None, str]:
        """Return a text's leader and "", or None and the drop reason; the reason is empty for a text between clusters."""
        near = self._near[n]
        if near[0] < self._anchors:
            return None, IN_REFERENCE if near[0] < len(self._reference) else IN_AUDIT
        if len(near) > 1:
            self._between.append((n, near))
            return None, ""
        side, other = (self.known.get(self.key[self._texts[m]]) for m in (n, near[0]))
        return (None, BRIDGE) if side is not None and side != other else (near[0], "")

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
        merged = (aggregate(self._texts[n], group, drops, self._task) for n, group in members.items() if group)
        return [e for e in merged if e is not None]

    def _in_order(self, rows: Mapping[str, list[Example]]) -> list[str]:
        def precedence(text: str) -> tuple[bool, str, bool, str]:
            known = self.key[text] in self.known
            people = not known and not any(e.source in FROM_FILES for e in rows[text])
            return not known, self.key[text] if known else "", people, text

        return sorted(rows, key=precedence)


def _by_text(rows: Iterable[Example]) -> dict[str, list[Example]]:
    by_text: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        by_text[row.text].append(row)
    return dict(by_text)
