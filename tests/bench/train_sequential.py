"""Part sequential of `make bench-train`: five rounds of 1,000 rows whose classes arrive in groups of 15.

Turns Banking77 into the share of joint training's test accuracy that is left at the end, for rounds that go on from the champion
and for a last round that starts from the base model on new rows and replay. Replay is at most as many rows as are new, the same
for both, alike from every old label; a replayed row weighs as many as it stands for, as in the dataset of a round. A tenth
validates: a row has one side for ever, as there. Forgetting is shown by group.
"""

import hashlib
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.compression import export
from pipelines.dataset.balance import MOST_WEIGHT
from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.tasks.classification import Classification
from pipelines.training.trainer import Trained, train
from pipelines.training.warm_start import WarmStart
from schemas.configuration.training import TrainingSettings
from tests.bench.report import Figure
from tests.bench.train_data import MAX_LENGTH, all_threads, answers, bank_rows, by_label, right

ROUNDS, NEW, GROUP, HELD, SPARE = 5, 1000, 15, 100, 1000
Bools = NDArray[np.bool_]


def measure(seed: int = 0) -> list[Figure]:
    """Final accuracy over all classes beside joint training's.

    Where a round should start is chosen by rows of the training file that no round saw; it is printed beside.
    """
    all_threads()
    encoder = Encoder(base_model_path(None), MAX_LENGTH)
    bank, test = bank_rows("train"), bank_rows("test")
    groups, arrivals, replays = rounds(bank, seed)
    used = {row.text for new in arrivals for row in new}
    spare = in_turn(by_label([row for row in bank if row.text not in used], seed), SPARE)
    champion: WarmStart | None = None
    seen: list[str] = []
    after: list[Bools] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (group, new, replay) in enumerate(zip(groups, arrivals, replays, strict=True)):
            seen += group
            own = [*new, *replay]
            trained = _round(encoder, own, seen, "champion" if champion else "base", champion)
            folder = Path(scratch) / f"v{number}"
            folder.mkdir()
            export.save_weights(trained.model, folder)
            champion = WarmStart(folder, folder.name, list(seen))
            after.append(_right(encoder, trained, test, seen))
            print(f"round {number + 1}: accuracy by group {_by_group(after[-1], test, groups)}", flush=True)
    alone = _round(encoder, own, seen, "base", None)
    together = _round(encoder, [row for new in arrivals for row in new], seen, "base", None)
    from_base, joint = (_right(encoder, model, test, seen) for model in (alone, together))
    for name, model in (("from the champion", trained), ("from the base on replay", alone), ("joint", together)):
        print(
            f"to choose by, {len(spare)} rows of the training file: {_right(encoder, model, spare, seen).mean():.4f} {name}"
        )
    first, last = _first(after, test, groups), _by_group(after[-1], test, groups)
    print(
        f"forgetting by group, from its own round to the last: {[round(a - b, 3) for a, b in zip(first, last, strict=True)]}"
    )
    print(
        f"champion {after[-1].mean():.4f}, base on replay {from_base.mean():.4f}, joint {joint.mean():.4f}", flush=True
    )
    return [
        Figure(
            figure=f"sequential: final accuracy over joint training's, {name} (worst group forgets {worst:+.3f})",
            value=float(found.mean() / joint.mean()),
            op=">=",
            target=0.98,
            n=len(test),
            interval=_interval(found, joint),
            baseline=float(joint.mean()),
        )
        for name, found, worst in (
            ("from the champion", after[-1], max(a - b for a, b in zip(first, last, strict=True))),
            (
                "from the base on replay",
                from_base,
                max(a - b for a, b in zip(first, _by_group(from_base, test, groups), strict=True)),
            ),
        )
    ]


def rounds(rows: Sequence[Example], seed: int) -> tuple[list[list[str]], list[list[Example]], list[list[Example]]]:
    """Labels, new rows and replay of each round. Replay takes old rows label by label in turn."""
    draw = np.random.default_rng(seed)
    parts = by_label(rows, seed)
    names = [str(name) for name in draw.permutation(sorted(parts))]
    cuts = [GROUP * n for n in range(ROUNDS)] + [len(names)]
    groups = [names[a:b] for a, b in itertools.pairwise(cuts)]
    arrivals: list[list[Example]] = []
    replays: list[list[Example]] = []
    old: dict[str, list[Example]] = {}
    for group in groups:
        pool = [row for name in group for row in parts[name]]
        new = [pool[n] for n in draw.permutation(len(pool))[:NEW]]
        replayed = [*in_turn(_side(old, False), NEW - HELD), *in_turn(_side(old, True), HELD)]
        of = Counter(row.label for row in replayed)
        replays.append([replace(row, weight=min(MOST_WEIGHT, len(old[row.label]) / of[row.label])) for row in replayed])
        arrivals.append(new)
        old |= by_label(new, seed)
    return groups, arrivals, replays


def held(row: Example) -> bool:
    """Whether a row validates, in its own round and in replay alike: by a hash of its text."""
    return int.from_bytes(hashlib.sha256(row.text.encode()).digest()[:4]) < HELD / NEW * 2**32


def _side(parts: dict[str, list[Example]], is_held: bool) -> dict[str, list[Example]]:
    return {name: [row for row in own if held(row) == is_held] for name, own in parts.items()}


def in_turn(parts: dict[str, list[Example]], most: int) -> list[Example]:
    """At most so many rows, as even over labels as they allow."""
    deepest = max((len(own) for own in parts.values()), default=0)
    return [own[n] for n in range(deepest) for own in parts.values() if n < len(own)][:most]


def _round(
    encoder: Encoder, rows: Sequence[Example], labels: Sequence[str], start: str, champion: WarmStart | None
) -> Trained:
    settings = TrainingSettings.model_validate({"start": start, "tfidf": False})
    own, validate = ([row for row in rows if held(row) == is_held] for is_held in (False, True))
    started = time.monotonic()
    trained = train(Classification(list(labels)), encoder, own, validate, settings, lambda *_: None, champion=champion)
    print(f"  {start}, {len(rows)} rows: {trained.method}, {time.monotonic() - started:.0f} s", flush=True)
    return trained


def _right(encoder: Encoder, trained: Trained, test: Sequence[Example], labels: Sequence[str]) -> Bools:
    """Of all test rows; those of labels yet to come are wrong."""
    task = Classification(list(labels))
    known = [n for n, row in enumerate(test) if row.label in set(labels)]
    found = np.zeros(len(test), dtype=bool)
    outputs: NDArray[Any] = answers(task, encoder, trained.model, [test[n] for n in known], TrainingSettings())
    found[known] = right(outputs, [test[n] for n in known], labels)
    return found


def _by_group(found: Bools, test: Sequence[Example], groups: Sequence[Sequence[str]]) -> list[float]:
    of = np.array([next(n for n, group in enumerate(groups) if row.label in group) for row in test])
    return [round(float(found[of == n].mean()), 3) for n in range(len(groups))]


def _first(after: Sequence[Bools], test: Sequence[Example], groups: Sequence[Sequence[str]]) -> list[float]:
    """Each group's accuracy after its own round."""
    return [_by_group(found, test, groups)[n] for n, found in enumerate(after)]


def _interval(found: Bools, joint: Bools) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    rows = draw.integers(len(found), size=(2000, len(found)))
    low, high = np.quantile(found[rows].mean(axis=1) / joint[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
