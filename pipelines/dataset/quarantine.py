"""Quarantine: people whose corrections contradict what everybody else's labels teach.

Turns rows, their embeddings and their authors into the set of people to leave out. build.py calls it after the cap per
person, so that one person's rows weigh little in what judges the others. It deliberately knows no champion: a correction
contradicts the champion by its nature, and is judged by a probe fitted on the seed and on other people's rows.

Only corrections are compared with corrections: they are about hard texts, so an honest person who only corrects agrees
with any probe far less often than one who also confirms. A label that nobody else has used much is not held against
the one who brings it.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from pipelines.training.probe import fit_probe

FOLDS = 5
LEAST_PEOPLE = 3
LEAST_ROWS = 8
KNOWN_LABEL_ROWS = 3
ALPHA = 0.001
RATIO = 0.5


def quarantined(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    people: Sequence[str | None],
    corrections: Sequence[bool],
    *,
    probe_c: float,
) -> set[str]:
    """People to leave out: they agree less than half as often as everybody else, and that is no accident.

    No accident: one-sided Fisher exact test (Fisher 1922) of their corrections against everybody else's, at ALPHA.

    Args:
        embeddings: [n, width], one row an example.
        labels: n labels.
        people: n authors; None (seed rows, nameless feedback) always trains the judge and is never judged.
        corrections: whether each row contradicts the prediction that was shown.
        probe_c: inverse regularisation of the judge.

    """
    authors = sorted({person for person in people if person is not None})
    if len(authors) < LEAST_PEOPLE:
        return set()
    agrees, counts = _agreement(embeddings, np.array(labels), people, authors, probe_c)
    counts &= np.array(corrections)
    who = np.array([person or "" for person in people])
    named = who != ""
    found = set()
    for person in authors:
        mine, others = counts & (who == person), counts & named & (who != person)
        n, k, m, j = int(mine.sum()), int(agrees[mine].sum()), int(others.sum()), int(agrees[others].sum())
        if n < LEAST_ROWS or not m or k / n >= RATIO * j / m:
            continue
        if fisher_exact([[k, n - k], [j, m - j]], alternative="less").pvalue < ALPHA:
            found.add(person)
    return found


def _agreement(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.str_],
    people: Sequence[str | None],
    authors: Sequence[str],
    probe_c: float,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per row: does a probe fitted on other people's rows agree, and do those rows know the label well enough to say?"""
    fold_of = {person: n % FOLDS for n, person in enumerate(authors)}
    folds = np.array([-1 if person is None else fold_of[person] for person in people])
    agrees, judged = np.zeros(len(labels), dtype=bool), np.zeros(len(labels), dtype=bool)
    for fold in range(min(FOLDS, len(authors))):
        mine, rest = folds == fold, folds != fold
        rows_of = Counter(labels[rest].tolist())
        if len(rows_of) < 2:
            continue
        names = sorted(rows_of)
        best = fit_probe(embeddings[rest], list(labels[rest]), names, c=probe_c).logits(embeddings[mine]).argmax(axis=1)
        agrees[mine] = np.array(names)[best] == labels[mine]
        given = Counter(labels[rest & (folds >= 0)].tolist())
        judged[mine] = [given[label] >= KNOWN_LABEL_ROWS for label in labels[mine]]
    return agrees, judged
