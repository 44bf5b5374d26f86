"""Describe a dataset, and measure its drift from live traffic and from the champion's training rows.

write.py calls `profile`, page.py shows the result.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, chi2_contingency

from pipelines.dataset.build import Dataset
from pipelines.dataset.counted import Counted
from pipelines.dataset.examples import Example
from pipelines.metrics.stability import psi
from pipelines.models.probe import PROBE_C, fit_probe
from schemas.manifests import DatasetProfile, Drift
from schemas.targets import Task

SAMPLE = 200  # texts embedded of each set, to bound the cost
COUNTED = 5000  # texts tokenised
BINS = 30
SLICES = 50
QUANTILES = (0, 5, 25, 50, 75, 95, 100)

Labelled = tuple[str, str]  # text, label


def profile(
    dataset: Dataset,
    *,
    task: Task,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    count_tokens: Callable[[Sequence[str]], list[int]],
    max_length: int,
    against: Mapping[str, Sequence[Labelled]],
) -> DatasetProfile:
    """Return the profile of a dataset.

    Args:
        dataset: as built.
        task: the task.
        embed: texts -> [n, width].
        count_tokens: n texts -> tokens of each [n].
        max_length: tokens to which texts are truncated.
        against: name -> rows to compare the training rows with.

    """
    train = dataset.train
    sides: dict[str, Sequence[Labelled]] = {
        "train": _labelled(train),
        "validation": _labelled(dataset.validation),
        "calibration": [(r.text, r.label) for r in dataset.calibration],
        "test": [(r.text, r.label) for r in dataset.reference],
    }
    names = Counted.over(task, dataset.labels, [e.label for e in train])
    counts = {side: names.rows(label for _, label in rows) for side, rows in sides.items()}
    people = Counter(e.person for e in train if e.person)
    slices = Counter(f"{key}={value}" for e in train for key, value in e.metadata.items()).most_common()
    lengths = np.percentile([len(e.text) for e in train] or [0], QUANTILES)
    counted = np.array(count_tokens([text for text, _ in _sample(sides["train"], COUNTED)]) or [0])
    histogram, edges = np.histogram(
        counted, bins=min(BINS, max(1, int(counted.max()))), range=(0, max(1, counted.max()))
    )
    return DatasetProfile(
        rows_by_side={side: len(rows) for side, rows in sides.items()},
        rows_by_label={name: {side: counts[side].get(name, 0) for side in sides} for name in names.names},
        rows_by_source=dict(Counter(e.source for e in train).most_common()),
        missing_labels=[label for label in dataset.labels if not counts["train"].get(label)],
        people=len(people),
        largest_person_share=max(people.values(), default=0) / max(1, len(train)),
        slices=dict(slices[:SLICES]),
        smallest_slice=slices[-1][0] if slices else None,
        characters={f"{q} %": float(n) for q, n in zip(QUANTILES, lengths, strict=True)},
        token_edges=[round(edge) for edge in edges.tolist()],
        token_counts=histogram.tolist(),
        cut_share=float((counted > max_length).mean()),
        drift=[_drift(name, sides["train"], rows, names, embed) for name, rows in against.items()],
    )


def two_sample(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[float, float]:
    """Return accuracy (two-fold cross-fitted) and p-value of a classifier two-sample test (Lopez-Paz and Oquab 2017).

    The larger sample is truncated, so that chance accuracy is 0.5.
    """
    n = min(len(one), len(other)) // 2 * 2
    rows = np.vstack([one[:n], other[:n]])
    names = np.array(["one", "other"])
    truth = np.repeat(names, n)
    fold = np.arange(2 * n) % 2
    right = 0
    for held in (0, 1):
        fitted = fit_probe(rows[fold != held], truth[fold != held].tolist(), names.tolist(), c=PROBE_C)
        best = names[fitted.outputs(rows[fold == held]).argmax(axis=1)]
        right += int((best == truth[fold == held]).sum())
    return right / (2 * n), float(binomtest(right, 2 * n, 0.5, alternative="greater").pvalue)


def _drift(
    name: str,
    train: Sequence[Labelled],
    others: Sequence[Labelled],
    counted: Counted,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
) -> Drift:
    mine, theirs = (counted.rows(label for _, label in rows) for rows in (train, others))
    distance = accuracy = p_texts = None
    if len(train) >= 4 and len(others) >= 4:
        a, b = (embed([text for text, _ in _sample(rows, SAMPLE)]) for rows in (train, others))
        x, y = a.mean(axis=0), b.mean(axis=0)
        distance = float(1 - x @ y / max(1e-12, float(np.linalg.norm(x) * np.linalg.norm(y))))
        accuracy, p_texts = two_sample(a, b)
    labels = sorted({*mine, *theirs})
    comparable = len(labels) > 1 and bool(mine) and bool(theirs)  # rows of no label at all compare with nothing
    table = [[counts.get(label, 0) for label in labels] for counts in (mine, theirs)]
    return Drift(
        against=name,
        rows=len(others),
        psi=psi(mine, theirs) if comparable else None,
        chi2_p=float(chi2_contingency(table).pvalue) if comparable else None,
        embedding_distance=distance,
        two_sample_accuracy=accuracy,
        two_sample_p=p_texts,
    )


def _labelled(rows: Sequence[Example]) -> list[Labelled]:
    return [(e.text, e.label) for e in rows]


def _sample(rows: Sequence[Labelled], n: int) -> list[Labelled]:
    """Return up to `n` rows, sampled by hash: the same rows give the same sample."""
    if len(rows) <= n:
        return list(rows)
    return sorted(rows, key=lambda row: hashlib.sha256(row[0].encode("utf-8", "surrogatepass")).digest())[:n]
