"""Sample older training rows for replay, and balance labels by weights or by a cap.

build.py calls it after sides are assigned. No rows are synthesised.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from datetime import datetime
from statistics import median

from pipelines.dataset.examples import CURATED, Drops, Example

MOST_WEIGHT = 10.0
CAP = 5  # rows of a label, in medians of all labels
ALWAYS_REPLAYED = 10_000  # older rows that a round keeps in any case if it starts from the base model


def replay(
    rows: list[Example], since: datetime | None, ratio: float | None, drops: Drops, *, always: int
) -> list[Example]:
    """Return all rows of files, all feedback after `since`, and at most `ratio` times as many older rows.

    Older rows are sampled by hash, so the same rows give the same sample (experience replay: Rolnick et al. 2019). Each sampled
    row is weighted by the rows that it represents, up to MOST_WEIGHT. Otherwise recent labels would look too frequent.

    Args:
        rows: training rows.
        since: time of the cut on which the champion was trained; None: everything is new.
        ratio: None: keep all.
        drops: counts the rows left out.
        always: number of older rows that are kept in any case.

    """
    if ratio is None or since is None:
        return rows
    moment = since.isoformat()
    older = [e for e in rows if e.source not in CURATED and e.order <= moment]
    room = max(always, int(ratio * (len(rows) - len(older))))
    if len(older) <= room:
        return rows
    replayed = {id(e) for e in sorted(older, key=_draw)[:room]}
    left_out = {id(e) for e in older} - replayed
    stands_for = min(MOST_WEIGHT, len(older) / max(1, room))
    kept = drops.keep(rows, lambda e: id(e) not in left_out, "not replayed")
    return [replace(e, weight=e.weight * stands_for) if id(e) in replayed else e for e in kept]


def class_weights(rows: list[Example]) -> list[Example]:
    """Return the rows weighted inversely to their label's frequency, with mean weight 1 (King and Zeng 2001)."""
    counts = Counter(e.label for e in rows)
    factors = {label: min(MOST_WEIGHT, len(rows) / (len(counts) * n)) for label, n in counts.items()}
    mean = sum(factors[e.label] for e in rows) / max(1, len(rows))
    return [replace(e, weight=e.weight * factors[e.label] / mean) for e in rows]


def capped(rows: list[Example], drops: Drops) -> list[Example]:
    """Return at most CAP times the median label's rows for each label, sampled by hash; rows of files all stay."""
    counts = Counter(e.label for e in rows)
    if len(counts) < 2:
        return rows
    most = max(1, int(CAP * median(counts.values())))
    seen: Counter[str] = Counter()
    kept = set()
    for e in sorted(rows, key=_draw):
        seen[e.label] += 1
        if seen[e.label] <= most or e.source in CURATED:
            kept.add(id(e))
    return drops.keep(rows, lambda e: id(e) in kept, "over the cap per label")


def _draw(e: Example) -> str:
    return hashlib.sha256(e.text.encode("utf-8", "surrogatepass")).hexdigest()
