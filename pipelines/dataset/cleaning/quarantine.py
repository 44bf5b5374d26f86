"""Detect people whose corrections contradict everybody else's labels.

A reference classifier, fitted on the seed and on other people's rows, predicts each correction. A person is quarantined whose
corrections agree with it significantly less often than other people's. The champion is not used: every correction contradicts
it. build.py calls this after the cap per person, so that no single person dominates the fit.

Corrections are compared with corrections only. They are about hard texts, so a person who only corrects agrees less often than
one who also confirms. Labels that few others have used do not count against anybody. For lists of labels, numbers and texts,
exact agreement is rare, so distances from the prediction of a ridge regression are compared instead.

Up to `embedded_rows` rows the classifier is a probe on the encoder's embeddings, which training needs anyway. Above, embedding
would dominate the cost, so it is naive Bayes on hashed words and word pairs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, norm, rankdata

from pipelines.dataset.examples import UNCHALLENGED, Example
from pipelines.models.probe import PROBE_C, fit_probe
from schemas.records import Trusted
from schemas.settings import Settings
from schemas.targets import Task, labels_of

EMBEDDED_ROWS = 5000
FOLDS = 5
LEAST_PEOPLE = 3
LEAST_ROWS = 8
KNOWN_LABEL_ROWS = 3
ALPHA = 0.001
RATIO = 0.5
HASHED_WORDS = 2**18

# training rows, their labels, test rows -> a label for each test row
FitPredict = Callable[[Any, NDArray[np.str_], Any], NDArray[np.str_]]


def quarantined_people(
    examples: Sequence[Example],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    settings: Settings,
    trusted: Trusted,
) -> set[str]:
    """Return the people whose corrections contradict everybody else's, if quarantine is on.

    A reviewer's decision goes first: a released person is left out, a rejected one included.
    """
    rejected = {e.person for e in examples if e.person is not None} & trusted.rejected
    if not settings.dataset.quarantine or not any(e.person for e in examples):
        return rejected
    # Not what nobody challenged: those are the champion's answers, which every correction contradicts.
    people = (e for e in examples if not e.rejects and e.source != UNCHALLENGED)
    given = sorted(people, key=lambda e: (e.text, e.label, e.person or "", e.order))
    contradicting = quarantined(
        [e.text for e in given],
        [e.label for e in given],
        [e.person for e in given],
        [e.source == "correction" for e in given],
        task=settings.model.task,
        embed=embed,
        probe_c=settings.training.probe_c or PROBE_C,
    )
    return contradicting - trusted.released | rejected


def quarantined(
    texts: Sequence[str],
    labels: Sequence[str],
    people: Sequence[str | None],
    corrections: Sequence[bool],
    *,
    task: Task,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    probe_c: float,
    embedded_rows: int = EMBEDDED_ROWS,
) -> set[str]:
    """Return the people whose corrections agree less than half as often as everybody else's, significant at ALPHA.

    Args:
        texts: n texts.
        labels: n targets.
        people: n authors; None (seed rows, anonymous feedback): always used for fitting, never tested.
        corrections: n flags, whether the row corrects a prediction.
        task: the task.
        embed: texts -> [n, width].
        probe_c: inverse regularisation of the probe.
        embedded_rows: up to this many rows are embedded; above, words are hashed.

    """
    authors = sorted({person for person in people if person is not None})
    if len(authors) < LEAST_PEOPLE:
        return set()
    embedded = len(texts) <= embedded_rows
    rows = embed(texts) if embedded else _words(texts)
    number = {person: n for n, person in enumerate(authors)}
    who = np.array([-1 if person is None else number[person] for person in people])
    tested = np.array(corrections) & (who >= 0)
    if task == "classification":
        fit_predict = _probe_classifier(probe_c) if embedded else _word_classifier
        outliers = _disagreeing(*_agreement(rows, np.array(labels), who, fit_predict), who, tested)
    else:
        targets = embed(labels).astype(np.float64) if task == "generation" else _as_numbers(task, labels)
        outliers = _farther(_distances(rows, targets, who)[tested], who[tested])
    return {authors[i] for i in outliers}


def _disagreeing(
    agrees: NDArray[np.bool_], known: NDArray[np.bool_], who: NDArray[np.int64], tested: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return authors whose rows agree less than half as often as all others': one-sided Fisher exact test (Fisher 1922)."""
    counts, authors = tested & known, int(who.max()) + 1
    n = np.bincount(who[counts], minlength=authors)
    k = np.bincount(who[counts & agrees], minlength=authors)
    m, j = n.sum() - n, k.sum() - k
    suspects = (n >= LEAST_ROWS) & (m > 0) & (k * m < RATIO * j * n)
    # lower tail: at most k agreeing rows among this person's n
    return np.flatnonzero(suspects & (hypergeom.cdf(k, n + m, k + j, n) < ALPHA))


def _farther(distances: NDArray[np.float64], who: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return authors whose distances exceed other people's more than twice as often as the reverse.

    One-sided Mann-Whitney test (Mann & Whitney 1947) in its normal approximation.
    """
    n = np.bincount(who)
    m = len(who) - n
    farther = np.bincount(who, weights=rankdata(distances)) - n * (n + 1) / 2  # pairs with other people's rows
    spread = np.sqrt(n * m * (len(who) + 1) / 12)
    suspects = (n >= LEAST_ROWS) & (n * m - farther < RATIO * farther)
    return np.flatnonzero(suspects & (norm.sf((farther - n * m / 2) / np.maximum(spread, 1e-12)) < ALPHA))


def _agreement(
    rows: Any, labels: NDArray[np.str_], who: NDArray[np.int64], fit_predict: FitPredict
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for each row whether a classifier fitted on other people's rows agrees, and whether those have its label often."""
    folds = np.where(who < 0, -1, who % FOLDS)
    agrees, known = np.zeros(len(labels), dtype=bool), np.zeros(len(labels), dtype=bool)
    for fold in range(min(FOLDS, int(who.max()) + 1)):
        mine, rest = folds == fold, folds != fold
        if len(set(labels[rest].tolist())) < 2:
            continue
        agrees[mine] = fit_predict(rows[rest], labels[rest], rows[mine]) == labels[mine]
        given = Counter(labels[rest & (folds >= 0)].tolist())
        known[mine] = [given[label] >= KNOWN_LABEL_ROWS for label in labels[mine].tolist()]
    return agrees, known


def _distances(rows: Any, targets: NDArray[np.float64], who: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return squared distances [n] of targets [n, k] from a ridge regression fitted on other people's rows."""
    from sklearn.linear_model import Ridge

    folds = np.where(who < 0, -1, who % FOLDS)
    distances = np.zeros(len(targets))
    for fold in range(min(FOLDS, int(who.max()) + 1)):
        mine, rest = folds == fold, folds != fold
        predicted = Ridge().fit(rows[rest], targets[rest]).predict(rows[mine]).reshape(-1, targets.shape[1])
        distances[mine] = ((predicted - targets[mine]) ** 2).sum(axis=1)
    return distances


def _as_numbers(task: Task, labels: Sequence[str]) -> NDArray[np.float64]:
    """Return the numbers, [n, 1]; or labels as indicators, [n, k]."""
    if task == "regression":
        return np.array([[float(label)] for label in labels])
    given = [labels_of(task, label) for label in labels]
    names = sorted(set().union(*given))
    return np.array([[float(name in row) for name in names] for row in given])


def _probe_classifier(c: float) -> FitPredict:
    def fit_predict(rows: NDArray[np.float32], labels: NDArray[np.str_], test: NDArray[np.float32]) -> NDArray[np.str_]:
        names = sorted(set(labels.tolist()))
        best = fit_probe(rows, labels.tolist(), names, c=c).outputs(test).argmax(axis=1)
        predicted: NDArray[np.str_] = np.array(names)[best]
        return predicted

    return fit_predict


def _words(texts: Sequence[str]) -> Any:
    """Return hashed counts of words and word pairs, sparse [n, HASHED_WORDS]."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=HASHED_WORDS, ngram_range=(1, 2), alternate_sign=False, norm=None).transform(
        texts
    )


def _word_classifier(rows: Any, labels: NDArray[np.str_], test: Any) -> NDArray[np.str_]:
    """Fit and predict with complement naive Bayes, which suits imbalanced labels (Rennie et al. 2003)."""
    from sklearn.naive_bayes import ComplementNB

    return np.asarray(ComplementNB().fit(rows, labels).predict(test))
