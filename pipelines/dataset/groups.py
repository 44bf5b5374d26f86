"""Cluster a round's texts together with the reference and the audit texts, and merge each cluster to one row.

Precedence: the reference, whose near-duplicates never train, and audit texts that wait for a label, whose near-duplicates do
not train yet; then texts that the split ledger has, so that a leader of an earlier round leads again; then rows of files; then
people's rows; then answers that nobody challenged. A row near two leaders is dropped. If they are on different sides it is a
"bridge", else a "duplicate".

A labelled audit text is a row of the reference. One without a label waits a limited time, after which feedback on it trains.
A text that has trained waits for nothing: it could not judge any more.

build.py makes one `Groups` a round, and assigns the sides.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipelines.dataset.cleaning.aggregate import aggregate
from pipelines.dataset.cleaning.deduplicate import Clusters, cluster
from pipelines.dataset.examples import FROM_FILES, UNCHALLENGED, Drops, Example
from schemas.targets import Task

JUDGING, TRAINING = ("calibration", "test"), ("train", "validation")
TRAINED = "has trained: it cannot judge"
LONG, MANY, MOST_BEGINNINGS = 100, 10, 8  # characters of a shared beginning, texts that share it, beginnings of a text
IN_REFERENCE, IN_AUDIT, BRIDGE, DUPLICATE = "in the reference", "waits for an audit label", "bridge", "duplicate"


class Groups:
    """The clusters of one round.

    Attributes:
        key: text -> its key in the split ledger.
        known: key -> side, for keys that the ledger has.

    Args:
        curated: normalised rows of the reference.
        waiting: normalised audit texts that wait for a label.
        examples: all other rows, normalised.
        key_of: text -> its key in the ledger.
        sides: keys -> side of each key that has one.
        task: decides the voting rule.

    """

    def __init__(
        self,
        curated: Sequence[Example],
        waiting: Sequence[str],
        examples: Sequence[Example],
        key_of: Callable[[str], str],
        sides: Callable[[Iterable[str]], dict[str, str]],
        task: Task,
    ) -> None:
        self._task = task
        self._reference = _by_text(curated)
        self._others = _by_text(examples)
        self.key = {text: key_of(text) for text in (*self._reference, *waiting, *self._others)}
        self.known = sides(set(self.key.values()))
        waits = (text for text in waiting if self.known.get(self.key[text]) not in TRAINING)
        self._audit = dict.fromkeys(text for text in waits if text not in self._reference)
        anchors = [*self._in_order(self._reference), *self._audit]
        rest = [
            text for text in self._in_order(self._others) if text not in self._reference and text not in self._audit
        ]
        self._anchors = len(anchors)
        self._texts = [*anchors, *rest]
        clusters = _clusters(self._texts, self._anchors, task)
        self._leads = [leader == n for n, leader in enumerate(clusters.leader)]
        self._near = clusters.near
        self._between: list[tuple[int, list[int]]] = []

    def reference(self, drops: Drops) -> list[Example]:
        """Return one reference row a cluster, with the elected label."""
        return self._judging(range(len(self._reference)), self._reference, drops)

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
        def precedence(text: str) -> tuple[bool, str, int, str]:
            known = self.key[text] in self.known
            sources = {e.source for e in rows[text]}
            rank = 0 if known or sources & FROM_FILES else 1 if sources != {UNCHALLENGED} else 2
            return not known, self.key[text] if known else "", rank, text

        return sorted(rows, key=precedence)


def untrained(
    audited: Sequence[Example],
    examples: Sequence[Example],
    key_of: Callable[[str], str],
    sides: Callable[[Iterable[str]], dict[str, str]],
    task: Task,
    drops: Drops,
) -> list[Example]:
    """Return the audited rows that judge already, and the new ones that are near no row that has trained."""
    if not audited:
        return []
    texts = {e.text for e in examples}
    known = sides({key_of(text) for text in (*texts, *(e.text for e in audited))})
    trained = sorted(text for text in texts if known.get(key_of(text)) in TRAINING)
    fair = drops.keep(audited, lambda e: known.get(key_of(e.text)) not in TRAINING, TRAINED)
    if not trained:
        return fair
    clusters = _clusters([*trained, *(e.text for e in audited)], len(trained), task)
    near = {
        e.text
        for n, e in enumerate(audited, len(trained))
        if key_of(e.text) not in known and any(other < len(trained) for other in clusters.near.get(n, ()))
    }
    return drops.keep(fair, lambda e: e.text not in near, f"near a row that {TRAINED}")


def far_from_trained(
    reference: Sequence[Example],
    examples: Sequence[Example],
    key_of: Callable[[str], str],
    sides: Callable[[Iterable[str]], dict[str, str]],
    task: Task,
    drops: Drops,
) -> list[Example]:
    """Return the reference rows without those that are new and near a row that has trained: the champion has learnt them."""
    known = sides({key_of(e.text) for e in reference})
    fresh = [e for e in reference if key_of(e.text) not in known]
    far = {e.text for e in untrained(fresh, examples, key_of, sides, task, drops)}
    new = {e.text for e in fresh}
    return [e for e in reference if e.text not in new or e.text in far]


def without_shared_beginnings(texts: Sequence[str]) -> list[str]:
    """Return the texts without long beginnings that many of them share, such as the system message of a chat.

    Prompts that differ only behind such a beginning are no near-duplicates, however long it is.
    """
    left = dict(zip(texts, texts, strict=True))
    for _ in range(MOST_BEGINNINGS):
        alike: dict[str, list[str]] = defaultdict(list)
        for text, rest in left.items():
            if len(rest) > LONG:
                alike[rest[:LONG]].append(text)
        many = [members for members in alike.values() if len(members) >= MANY]
        for members in many:
            rests = [left[text] for text in members]
            first, last = min(rests), max(rests)  # what these two share, all share
            shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
            left |= {text: left[text][shared:] or left[text] for text in members}
        if not many:
            break
    return [left[text] for text in texts]


def _clusters(texts: Sequence[str], anchors: int, task: Task) -> Clusters:
    """Return the clusters of texts; a prompt is compared with those behind the same beginning: behind another it is another."""
    if task != "generation":
        return cluster(texts, anchors)
    rests, behind = without_shared_beginnings(texts), defaultdict[str, list[int]](list)
    for n, (text, rest) in enumerate(zip(texts, rests, strict=True)):
        behind[text[: len(text) - len(rest)]].append(n)
    leader, near = list(range(len(texts))), dict[int, list[int]]()
    for numbers in behind.values():
        clusters = cluster([rests[n] for n in numbers], sum(n < anchors for n in numbers))
        for n, first in zip(numbers, clusters.leader, strict=True):
            leader[n] = numbers[first]
        near |= {numbers[n]: [numbers[other] for other in others] for n, others in clusters.near.items()}
    return Clusters(leader, near)


def _by_text(rows: Iterable[Example]) -> dict[str, list[Example]]:
    by_text: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        by_text[row.text].append(row)
    return dict(by_text)
