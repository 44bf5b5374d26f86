"""The probe: a regularised linear head on fixed features of texts, logistic or ridge.

Turns features and targets into a head. Features are frozen embeddings, or the sparse rows of tfidf.py. Training starts from
the probe and must beat it; the gates compare the candidate with it; the quarantine judges people by it.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

ALPHAS = np.logspace(-3, 4, 15)
RIDGE_ROWS = 3000  # that choose a ridge regression's regularisation, which takes their number squared of memory
PROBE_C = 0.075  # inverse regularisation on embeddings of length 20, where no rows choose one
# Most iterations of a logistic regression, and its tolerance on the gradient; sparse features are many and take longer.
STEPS, CLOSE, CLOSE_SPARSE = 300, 1e-4, 1e-3

Features = Any  # [n, width], an array or a sparse csr_array


@dataclass(frozen=True)
class Probe:
    """A linear head: weight [k, width] and bias [k]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def outputs(self, features: Features) -> NDArray[np.float64]:
        """Return the outputs [n, k] for features [n, width]."""
        return np.asarray(features @ self.weight.T + self.bias)


def fit_probe(
    features: Features, labels: Sequence[str], order: Sequence[str], *, c: float, weights: Sequence[float] | None = None
) -> Probe:
    """Return a multinomial logistic regression with inverse regularisation `c`; see `fit_path`."""
    return fit_path(features, labels, order, cs=[c], weights=weights)[0]


def fit_path(
    features: Features,
    labels: Sequence[str],
    order: Sequence[str],
    *,
    cs: Sequence[float],
    weights: Sequence[float] | None = None,
) -> list[Probe]:
    """Return a multinomial logistic regression for each inverse regularisation, each fit started from the one before.

    A label of `order` without rows gets a zero row and a bias below every other: improbable, not impossible.
    """
    index = {label: n for n, label in enumerate(order)}
    numbers = np.array([index[label] for label in labels])
    present = np.unique(numbers)
    if len(present) < 2:
        return [_with_absent(np.zeros((0, features.shape[1])), np.zeros(0), present[:0], len(order))] * len(cs)
    probes = []
    for model in _logistic_path(features, numbers, cs, weights):
        coefficients, intercepts = model.coef_, model.intercept_
        if len(present) == 2:
            coefficients = np.vstack([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        probes.append(_with_absent(coefficients, intercepts, present, len(order)))
    return probes


def fit_one_vs_rest_path(
    features: Features, targets: NDArray[np.float32], *, cs: Sequence[float], weights: Sequence[float] | None = None
) -> list[Probe]:
    """Return a logistic regression for each 0-or-1 column of `targets` [n, k], for each inverse regularisation.

    A label that all rows have, or none, gets zero weights; its bias is the log-odds, with half a row added on each side.
    """
    rows, k = targets.shape
    weight, bias = np.zeros((len(cs), k, features.shape[1])), np.zeros((len(cs), k))
    for n, column in enumerate(targets.T):
        positive = int(column.sum())
        if 0 < positive < rows:
            for m, model in enumerate(_logistic_path(features, column, cs, weights)):
                weight[m, n], bias[m, n] = model.coef_[0], model.intercept_[0]
        else:
            bias[:, n] = np.log((positive + 0.5) / (rows - positive + 0.5))
    return [Probe(*head) for head in zip(weight, bias, strict=True)]


def fit_ridge(features: Features, targets: NDArray[np.float64], *, weights: Sequence[float] | None = None) -> Probe:
    """Return a ridge regression on numbers [n]; its regularisation is the best of ALPHAS by leave-one-out error.

    Of more than RIDGE_ROWS rows, evenly spaced ones choose it.
    """
    from sklearn.linear_model import Ridge, RidgeCV

    n = len(targets)
    if n < 2:
        return Probe(np.zeros((1, features.shape[1])), np.full(1, targets.mean() if n else 0.0))
    exact, given = features.astype(np.float64), np.ones(n) if weights is None else np.asarray(weights)
    some = np.unique(np.linspace(0, n - 1, min(n, RIDGE_ROWS)).astype(np.int64))
    with _quietly_on_one_thread():
        model = RidgeCV(alphas=ALPHAS).fit(exact[some], targets[some], sample_weight=given[some])
        if len(some) < n:
            model = Ridge(alpha=model.alpha_).fit(exact, targets, sample_weight=given)
    return Probe(model.coef_[None, :], np.array([model.intercept_]))


def _logistic_path(
    features: Features, targets: NDArray[Any], cs: Sequence[float], weights: Sequence[float] | None
) -> Iterator[Any]:
    """Yield one scikit-learn model, fitted anew for each inverse regularisation from where it was."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=STEPS, tol=CLOSE_SPARSE if issparse(features) else CLOSE, warm_start=True)
    for c in cs:
        with _quietly_on_one_thread():
            model.set_params(C=c).fit(features, targets, sample_weight=weights)
        yield model


def _with_absent(
    coefficients: NDArray[np.float64], intercepts: NDArray[np.float64], present: NDArray[np.int64], k: int
) -> Probe:
    """Return a probe of k labels from rows for those that are present."""
    weight, bias = np.zeros((k, coefficients.shape[1])), np.zeros(k)
    weight[present], bias[present] = coefficients, intercepts
    absent = np.setdiff1d(np.arange(k), present)
    bias[absent] = bias.min(initial=0.0) - 4.0
    return Probe(weight, bias)


@contextmanager
def _quietly_on_one_thread() -> Iterator[None]:
    """Limit BLAS to one thread: competing with torch's threads makes a fit a hundred times slower. Silence slow convergence."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
