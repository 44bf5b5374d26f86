"""Quarantine: people whose labels contradict what everybody else's labels teach.

Turns rows, their embeddings and their authors into the set of people to leave out. build.py calls it after the cap per
person, so that one person's rows weigh little in what judges the others. It deliberately knows no champion: corrections
contradict the champion by their nature.

Each person is judged by a probe fitted on other people's rows. Somebody is left out if their agreement with it is below
half of everybody else's and a one-sided binomial test at .001 says that this is no accident.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from pipelines.training.probe import fit_probe

FOLDS = 5
LEAST_ROWS = 8
ALPHA = 0.001


def quarantined(
    embeddings: NDArray[np.float32], labels: Sequence[str], people: Sequence[str | None], *, probe_c: float
) -> set[str]:
    """People to leave out.

    Args:
        embeddings: [n, width], one row an example.
        labels: n labels.
        people: n authors; None (seed rows, nameless feedback) always trains the judge and is never judged.
        probe_c: inverse regularisation of the judge.

    """
    authors = sorted({person for person in people if person is not None})
    if len(authors) < 3:
        return set()
    fold_of = {person: n % FOLDS for n, person in enumerate(authors)}
    folds = np.array([-1 if person is None else fold_of[person] for person in people])
    names = np.array(labels)
    agrees = np.zeros(len(labels), dtype=bool)
    for fold in range(FOLDS):
        judged, rest = folds == fold, folds != fold
        if judged.any() and len(set(names[rest])) > 1:
            probe = fit_probe(embeddings[rest], list(names[rest]), sorted(set(names[rest])), c=probe_c)
            best = probe.logits(embeddings[judged]).argmax(axis=1)
            agrees[judged] = np.array(probe.labels)[best] == names[judged]
    who = np.array([person or "" for person in people])
    found = set()
    for person in authors:
        mine, others = who == person, (who != person) & (folds >= 0)
        n, rate = int(mine.sum()), float(agrees[others].mean()) if others.any() else 0.0
        k = int(agrees[mine].sum())
        if n >= LEAST_ROWS and k / n < rate / 2 and binom.cdf(k, n, rate) < ALPHA:
            found.add(person)
    return found
