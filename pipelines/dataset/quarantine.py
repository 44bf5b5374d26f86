"""Quarantine: people whose corrections contradict what everybody else's labels teach.

Turns rows, what a judge can read of them, and their authors into the set of people to leave out. build.py calls it after the
cap per person, so that one person's rows weigh little in what judges the others. It deliberately knows no champion: a
correction contradicts the champion by its nature, and is judged by a judge fitted on the seed and on other people's rows.

Only corrections are compared with corrections: they are about hard texts, so an honest person who only corrects agrees
with any judge far less often than one who also confirms. A label that nobody else has used much is not held against
the one who brings it. Lists of labels, numbers and texts (as their embeddings) are hardly ever met exactly: there distances
from the judge are compared.

Up to EMBEDDED_ROWS the judge is the probe on the encoder's embeddings, which training computes anyway. Beyond, embedding
would cost more than all other steps together, and so many rows teach a judge over words as well: naive Bayes on hashed
words and pairs of words, at a cost that is linear and small.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, norm, rankdata

from pipelines.models.probe import fit_probe
from schemas.targets import Task, labels_of

EMBEDDED_ROWS = 5000
FOLDS = 5
LEAST_PEOPLE = 3
LEAST_ROWS = 8
KNOWN_LABEL_ROWS = 3
ALPHA = 0.001
RATIO = 0.5
HASHED_WORDS = 2**18

# rows to fit on, their labels, rows to judge -> the label of each
Judge = Callable[[Any, NDArray[np.str_], Any], NDArray[np.str_]]


def quarantined(
    texts: Sequence[str],
    labels: Sequence[str],
    people: Sequence[str | None],
    corrections: Sequence[bool],
    *,
    task: Task,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    probe_c: float,
) -> set[str]:
    """People to leave out: their corrections agree less than half as often as everybody else's, and that is no accident at
    ALPHA.

    Args:
        texts: one an example.
        labels: n targets.
        people: n authors; None (seed rows, nameless feedback) always trains the judge and is never judged.
        corrections: whether each row contradicts the prediction that was shown.
        task: what labels are.
        embed: texts -> [n, width].
        probe_c: inverse regularisation of the probe.

    """
    authors = sorted({person for person in people if person is not None})
    if len(authors) < LEAST_PEOPLE:
        return set()
    embedded = len(texts) <= EMBEDDED_ROWS
    rows = embed(texts) if embedded else _words(texts)
    number = {person: n for n, person in enumerate(authors)}
    who = np.array([-1 if person is None else number[person] for person in people])
    asked = np.array(corrections) & (who >= 0)
    if task == "classification":
        judge = _probe_judge(probe_c) if embedded else _word_judge
        found = _disagreeing(*_agreement(rows, np.array(labels), who, judge), who, asked)
    else:
        targets = embed(labels).astype(np.float64) if task == "generation" else _as_numbers(task, labels)
        found = _farther(_distances(rows, targets, who)[asked], who[asked])
    return {authors[i] for i in found}


def _disagreeing(
    agrees: NDArray[np.bool_], judged: NDArray[np.bool_], who: NDArray[np.int64], asked: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Authors less than half as often agreed with as everybody else: one-sided Fisher exact test (Fisher 1922)."""
    counts, authors = asked & judged, int(who.max()) + 1
    n = np.bincount(who[counts], minlength=authors)
    k = np.bincount(who[counts & agrees], minlength=authors)
    m, j = n.sum() - n, k.sum() - k
    suspects = (n >= LEAST_ROWS) & (m > 0) & (k * m < RATIO * j * n)
    # the lower tail of Fisher's test: k or fewer agreeing rows among this person's n
    return np.flatnonzero(suspects & (hypergeom.cdf(k, n + m, k + j, n) < ALPHA))


def _farther(distances: NDArray[np.float64], who: NDArray[np.int64]) -> NDArray[np.int64]:
    """Authors whose rows are less than half as often nearer than somebody else's as they are farther: one-sided
    Mann-Whitney test (Mann & Whitney 1947) by its normal approximation.
    """
    n = np.bincount(who)
    m = len(who) - n
    farther = np.bincount(who, weights=rankdata(distances)) - n * (n + 1) / 2  # pairs with a row of somebody else
    spread = np.sqrt(n * m * (len(who) + 1) / 12)
    suspects = (n >= LEAST_ROWS) & (n * m - farther < RATIO * farther)
    return np.flatnonzero(suspects & (norm.sf((farther - n * m / 2) / np.maximum(spread, 1e-12)) < ALPHA))


def _agreement(
    rows: Any, labels: NDArray[np.str_], who: NDArray[np.int64], judge: Judge
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per row: does a judge fitted on other people's rows agree, and do those rows know the label well enough to say?"""
    folds = np.where(who < 0, -1, who % FOLDS)
    agrees, judged = np.zeros(len(labels), dtype=bool), np.zeros(len(labels), dtype=bool)
    for fold in range(min(FOLDS, int(who.max()) + 1)):
        mine, rest = folds == fold, folds != fold
        if len(set(labels[rest].tolist())) < 2:
            continue
        agrees[mine] = judge(rows[rest], labels[rest], rows[mine]) == labels[mine]
        given = Counter(labels[rest & (folds >= 0)].tolist())
        judged[mine] = [given[label] >= KNOWN_LABEL_ROWS for label in labels[mine].tolist()]
    return agrees, judged


def _distances(rows: Any, targets: NDArray[np.float64], who: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each row's target [n, k] is from a ridge regression that was fitted on other people's rows: [n]."""
    from sklearn.linear_model import Ridge

    folds = np.where(who < 0, -1, who % FOLDS)
    away = np.zeros(len(targets))
    for fold in range(min(FOLDS, int(who.max()) + 1)):
        mine, rest = folds == fold, folds != fold
        said = Ridge().fit(rows[rest], targets[rest]).predict(rows[mine]).reshape(-1, targets.shape[1])
        away[mine] = ((said - targets[mine]) ** 2).sum(axis=1)
    return away


def _as_numbers(task: Task, labels: Sequence[str]) -> NDArray[np.float64]:
    """[n, 1] numbers; or [n, k], 1 where a row has a label."""
    if task == "regression":
        return np.array([[float(label)] for label in labels])
    given = [labels_of(task, label) for label in labels]
    names = sorted(set().union(*given))
    return np.array([[float(name in own) for name in names] for own in given])


def _probe_judge(c: float) -> Judge:
    def judge(rows: NDArray[np.float32], labels: NDArray[np.str_], asked: NDArray[np.float32]) -> NDArray[np.str_]:
        names = sorted(set(labels.tolist()))
        best = fit_probe(rows, labels.tolist(), names, c=c).outputs(asked).argmax(axis=1)
        found: NDArray[np.str_] = np.array(names)[best]
        return found

    return judge


def _words(texts: Sequence[str]) -> Any:
    """Hashed counts of words and pairs of words, [n, HASHED_WORDS], sparse."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=HASHED_WORDS, ngram_range=(1, 2), alternate_sign=False, norm=None).transform(
        texts
    )


def _word_judge(rows: Any, labels: NDArray[np.str_], asked: Any) -> NDArray[np.str_]:
    """Complement naive Bayes (Rennie et al. 2003): sound where labels are uneven."""
    from sklearn.naive_bayes import ComplementNB

    return np.asarray(ComplementNB().fit(rows, labels).predict(asked))
