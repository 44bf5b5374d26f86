"""The probe: a regularised linear head on frozen embeddings, logistic or ridge.

Turns embeddings and targets into a head. Training starts from the probe and must beat it; the gates compare the candidate with
it; the quarantine judges people by it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALPHAS = np.logspace(-3, 4, 15)


@dataclass(frozen=True)
class Probe:
    """A linear head: weight [k, width] and bias [k]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def outputs(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the outputs [n, k] for embeddings [n, width]."""
        return np.asarray(embeddings @ self.weight.T + self.bias)


def fit_probe(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    order: Sequence[str],
    *,
    c: float,
    weights: Sequence[float] | None = None,
) -> Probe:
    """Return a multinomial logistic regression with inverse regularisation `c`.

    A label of `order` without rows gets a zero row and a bias below every other: improbable, not impossible.
    """
    from sklearn.linear_model import LogisticRegression

    index = {label: n for n, label in enumerate(order)}
    present = sorted(set(labels), key=lambda label: index[label])
    width = embeddings.shape[1]
    weight, bias = np.zeros((len(order), width)), np.zeros(len(order))
    if len(present) > 1:
        with _one_thread():
            model = LogisticRegression(C=c, max_iter=300).fit(embeddings, list(labels), sample_weight=weights)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:
            coefficients, intercepts = (
                np.vstack([-coefficients, coefficients]) / 2,
                np.concatenate([-intercepts, intercepts]) / 2,
            )
        rows = [index[str(label)] for label in model.classes_]
        weight[rows], bias[rows] = coefficients, intercepts
    absent = [n for label, n in index.items() if label not in set(present)]
    bias[absent] = bias.min() - 4.0
    return Probe(weight, bias)


def fit_one_vs_rest(
    embeddings: NDArray[np.float32],
    targets: NDArray[np.float32],
    *,
    c: float,
    weights: Sequence[float] | None = None,
) -> Probe:
    """Return a logistic regression for each 0-or-1 column of `targets` [n, k], with inverse regularisation `c`.

    A constant column gets a zero row, and as bias the log-odds with half a row added on either side.
    """
    from sklearn.linear_model import LogisticRegression

    rows, k = targets.shape
    weight, bias = np.zeros((k, embeddings.shape[1])), np.zeros(k)
    with _one_thread():
        for n, column in enumerate(targets.T):
            positive = int(column.sum())
            if 0 < positive < rows:
                model = LogisticRegression(C=c, max_iter=300).fit(embeddings, column, sample_weight=weights)
                weight[n], bias[n] = model.coef_[0], model.intercept_[0]
            else:
                bias[n] = np.log((positive + 0.5) / (rows - positive + 0.5))
    return Probe(weight, bias)


def fit_ridge(
    embeddings: NDArray[np.float32], targets: NDArray[np.float64], *, weights: Sequence[float] | None = None
) -> Probe:
    """Return a ridge regression on numbers [n]; its regularisation is the best of ALPHAS by leave-one-out error."""
    from sklearn.linear_model import RidgeCV

    if len(targets) < 2:
        return Probe(np.zeros((1, embeddings.shape[1])), np.full(1, targets.mean() if len(targets) else 0.0))
    with _one_thread():
        model = RidgeCV(alphas=ALPHAS).fit(embeddings.astype(np.float64), targets, sample_weight=weights)
    return Probe(model.coef_[None, :], np.array([model.intercept_]))


def _one_thread() -> AbstractContextManager[object]:
    """Limit BLAS to one thread: competing with torch's threads makes a fit a hundred times slower."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits
